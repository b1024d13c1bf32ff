// The metadata of schema version 1, field by field; Python's `sifa.artifact` writes it.
#include "metadata.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "sifa/error.h"

namespace sifa {
namespace {

using nlohmann::json;

constexpr int kSchemaVersion = 1;
const char kEntry[] = "extra/sifa.json";

// Above any sensible model's; they bound what a lying file can make the loader allocate.
constexpr std::uint64_t kMaxJsonSize = std::uint64_t{16} << 20;
constexpr std::int64_t kMaxFrames = 1 << 14;
constexpr std::int64_t kMaxFrameStride = 1 << 20;
constexpr std::int64_t kMaxSide = 1 << 14;
constexpr std::uint64_t kMaxReferenceSize = std::uint64_t{1} << 30;  // bytes
constexpr std::size_t kMaxState = 1 << 10;                           // tensors
constexpr std::int64_t kMaxStateSize = 1 << 28;                      // numbers, for one stream
constexpr std::int64_t kMaxCost = std::int64_t{1} << 53;             // what JSON readers keep exactly

// A value as it stands in the file, for an error message: ASCII, and not too long.
std::string quoted(const json& value) {
  // Writing what is nested recurses, and a file may nest deeper than the stack.
  const auto is_nested = [](const json& element) { return element.is_structured(); };
  if (value.is_structured() && std::any_of(value.begin(), value.end(), is_nested)) {
    return std::string("a nested ") + value.type_name();
  }
  const std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

class FieldReader {
 public:
  FieldReader(const json& object, const std::string& path, const std::string& prefix = "")
      : object_(object), path_(path), prefix_(prefix) {}

  [[noreturn]] void refuse(const char* name, const std::string& expected) const {
    const std::string given = object_.contains(name) ? quoted(object_[name]) : "nothing";
    throw Error(ErrorCode::kNotAModel, path_ + " is not a SIFA model that can be used: in its metadata " +
                                           prefix_ + name + " must be " + expected + ", got " + given);
  }

  const json& field(const char* name, const std::string& expected, bool (*accept)(const json&)) const {
    if (!object_.contains(name) || !accept(object_[name])) refuse(name, expected);
    return object_[name];
  }

  const json& object(const char* name) const {
    return field(name, "an object", [](const json& value) { return value.is_object(); });
  }

  std::string text(const char* name) const {
    return field(name, "a string", [](const json& value) { return value.is_string(); }).get<std::string>();
  }

  std::int64_t integer(const char* name, std::int64_t low, std::int64_t high) const {
    const std::string expected = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
    const json& value = field(name, expected, is_integer);
    if (!in_range(value, low, high)) refuse(name, expected);
    return value.get<std::int64_t>();
  }

  static bool is_integer(const json& value) { return value.is_number_integer(); }

  static bool in_range(const json& value, std::int64_t low, std::int64_t high) {
    // A number beyond the signed range is kept as unsigned, and would wrap when asked for as signed.
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(high))
      return false;
    return value.get<std::int64_t>() >= low && value.get<std::int64_t>() <= high;
  }

 private:
  const json& object_;
  const std::string& path_;
  std::string prefix_;
};

std::vector<StateTensor> parse_state(const FieldReader& fields) {
  const std::string kState = "a list of 1 to " + std::to_string(kMaxState) +
                             " objects, each with a shape of positive integers and a dtype of float32, "
                             "float16, bfloat16, int64";
  const json& entries = fields.field("state", kState, [](const json& value) {
    return value.is_array() && !value.empty() && value.size() <= kMaxState;
  });
  std::vector<StateTensor> state;
  std::int64_t total = 0;
  for (const json& entry : entries) {
    if (!entry.is_object() || !entry.contains("shape") || !entry["shape"].is_array() ||
        !entry.contains("dtype") || !entry["dtype"].is_string()) {
      fields.refuse("state", kState);
    }
    StateTensor tensor{{}, entry["dtype"].get<std::string>()};
    const std::string& dtype = tensor.dtype;
    if (dtype != "float32" && dtype != "float16" && dtype != "bfloat16" && dtype != "int64") {
      fields.refuse("state", kState);
    }
    std::int64_t size = 1;
    for (const json& side : entry["shape"]) {
      if (!FieldReader::is_integer(side) || !FieldReader::in_range(side, 1, kMaxStateSize / size)) {
        fields.refuse("state", kState);
      }
      tensor.shape.push_back(side.get<std::int64_t>());
      size *= tensor.shape.back();
    }
    total += size;
    if (total > kMaxStateSize) fields.refuse("state", kState);
    state.push_back(std::move(tensor));
  }
  return state;
}

Metadata parse(const std::string& text, const std::string& path) {
  const json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) {
    throw Error(ErrorCode::kNotAModel,
                path + " is not a SIFA model: its entry " + kEntry + " is not a JSON object");
  }
  const FieldReader fields(document, path);
  Metadata metadata;
  metadata.json = text;

  // First what decides whether the other fields mean what this version thinks they mean.
  const auto unsupported = [&](const std::string& what, const std::vector<std::string>& known) {
    std::string choices;
    for (const std::string& choice : known) choices += (choices.empty() ? "" : " or ") + choice;
    throw Error(ErrorCode::kUnsupportedSchema, path + " has " + what + ", this version of SIFA reads " +
                                                   choices +
                                                   "; export the model again, or use the SIFA that wrote it");
  };
  const json& version = fields.field("schema_version", "an integer", FieldReader::is_integer);
  if (!FieldReader::in_range(version, kSchemaVersion, kSchemaVersion)) {
    unsupported("schema version " + quoted(version), {std::to_string(kSchemaVersion)});
  }
  metadata.schema_version = kSchemaVersion;
  struct Choice {
    const char* name;
    std::string Metadata::* member;
    std::vector<std::string> known;
  };
  for (const Choice& choice :
       {Choice{"kind", &Metadata::kind, {"clip", "window", "streaming"}},
        Choice{"format", &Metadata::format, {"torchscript", "aoti", "exported"}},
        Choice{"sampling", &Metadata::sampling, {"center", "segments"}},
        Choice{"precision", &Metadata::precision, {"float32", "float16", "bfloat16"}}}) {
    metadata.*choice.member = fields.text(choice.name);
    if (std::find(choice.known.begin(), choice.known.end(), metadata.*choice.member) == choice.known.end()) {
      unsupported(std::string(choice.name) + " " + quoted(document[choice.name]), choice.known);
    }
  }

  metadata.model = FieldReader(fields.object("model"), path, "model.").text("name");
  metadata.num_frames = fields.integer("num_frames", 1, kMaxFrames);
  metadata.frame_stride = fields.integer("frame_stride", 1, kMaxFrameStride);
  metadata.temporal_stride = fields.integer("temporal_stride", 1, metadata.num_frames);
  metadata.torch_version = fields.text("torch_version");
  metadata.sifa_version = fields.text("sifa_version");
  metadata.operator_schema = fields.text("operator_schema");

  const char* kLabels = "a list of at least one string";
  for (const json& label : fields.field(
           "labels", kLabels, [](const json& value) { return value.is_array() && !value.empty(); })) {
    if (!label.is_string()) fields.refuse("labels", kLabels);
    metadata.labels.push_back(label.get<std::string>());
  }

  const std::string kSize = "[height, width], each from 1 to " + std::to_string(kMaxSide);
  const json& size = fields.field("input_size", kSize, [](const json& value) {
    return value.is_array() && value.size() == 2 && FieldReader::is_integer(value[0]) &&
           FieldReader::is_integer(value[1]);
  });
  for (std::size_t i : {0, 1}) {
    if (!FieldReader::in_range(size[i], 1, kMaxSide)) fields.refuse("input_size", kSize);
    metadata.input_size[i] = size[i].get<std::int64_t>();
  }
  const std::int64_t pixels =
      (metadata.input_size[0] + kReferenceBorder[0]) * (metadata.input_size[1] + kReferenceBorder[1]);
  if (static_cast<std::uint64_t>(metadata.num_frames * pixels * 3) > kMaxReferenceSize) {
    fields.refuse("input_size", "such that a clip, " + std::to_string(kReferenceBorder[0]) +
                                    " pixels higher and " + std::to_string(kReferenceBorder[1]) +
                                    " wider, has at most 1 GiB");
  }

  const FieldReader reference(fields.object("reference"), path, "reference.");
  const std::string kOutputs =
      "a list of " + std::to_string(metadata.labels.size()) + " numbers, one per label";
  const auto is_array = [](const json& value) { return value.is_array(); };
  for (const json& probability : reference.field("probabilities", kOutputs, is_array)) {
    if (!probability.is_number()) reference.refuse("probabilities", kOutputs);
    metadata.reference_probabilities.push_back(probability.get<float>());
  }
  if (metadata.reference_probabilities.size() != metadata.labels.size()) {
    reference.refuse("probabilities", kOutputs);
  }
  const auto is_number = [](const json& value) { return value.is_number(); };
  metadata.reference_tolerance = reference.field("tolerance", "a number above 0", is_number).get<double>();
  if (!(metadata.reference_tolerance > 0.0)) reference.refuse("tolerance", "a number above 0");
  if (metadata.kind != "clip") {
    if (metadata.num_frames % metadata.temporal_stride != 0) {
      fields.refuse("temporal_stride", "a divisor of num_frames, " + std::to_string(metadata.num_frames));
    }
    metadata.state = parse_state(fields);
    const std::int64_t steps = metadata.num_frames / metadata.temporal_stride;
    const StateTensor& last = metadata.state.back();
    if (metadata.kind == "window") {
      if (metadata.state.size() != 1 || last.shape.empty() || last.shape[0] != steps) {
        fields.refuse("state", "one tensor of " + std::to_string(steps) + " rows, the steps of the window");
      }
    } else {
      const std::size_t count = metadata.state.size();
      const bool has_head = count >= 2 && last.shape.empty() && last.dtype == "int64" &&
                            !metadata.state[count - 2].shape.empty() &&
                            metadata.state[count - 2].shape[0] == steps;
      if (!has_head) {
        fields.refuse("state",
                      "such that the last two tensors are " + std::to_string(steps) +
                          " rows, the features of as many steps, and their count, int64 of shape []");
      }
    }
  }
  if (document.contains("cost")) {
    const FieldReader cost(fields.object("cost"), path, "cost.");
    metadata.operations = cost.integer("operations", 0, kMaxCost);
    metadata.weight_bytes = cost.integer("weight_bytes", 0, kMaxCost);
  }
  if (metadata.format == "aoti") {
    const FieldReader compiled(fields.object("compiled_for"), path, "compiled_for.");
    metadata.compiled_for = {compiled.text("device"), compiled.text("machine"), compiled.text("cpu")};
  }
  return metadata;
}

}  // namespace

Metadata read_metadata(Archive& archive, const std::string& path) {
  if (!archive.contains(kEntry)) {
    throw Error(ErrorCode::kNotAModel, path + " is not a SIFA model: it has no entry " + kEntry +
                                           "; models are made by `sifa export`");
  }
  Metadata metadata = parse(archive.read(kEntry, kMaxJsonSize), path);
  archive.check_entries(metadata.format);
  return metadata;
}

Metadata read_metadata(const std::string& path) {
  Archive archive(path);
  Metadata metadata = read_metadata(archive, path);
  archive.verify();
  return metadata;
}

}  // namespace sifa
