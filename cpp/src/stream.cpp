// Streams: which frames wait for the next prediction, what of them is batched, and a stream as bytes.
//
// All kinds of model take the same way. A stream's first prediction is due when `window` frames are there. A
// clip's model is always given the last `window`, of which the oldest `hop` are then given away; one with a
// state is given every frame once, after the first prediction `hop` at a time. `window` and `hop` of a causal
// model are its step.
#include "sifa/stream.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <zlib.h>

#include <cstring>
#include <mutex>
#include <utility>

#include "model.h"
#include "torch_errors.h"

namespace sifa {
namespace {

// One stream. Everything in it is saved.
struct Slot {
  std::int64_t pushed = 0;           // frames, since the reset
  std::int64_t count = 0;            // frames in `frames`
  std::int64_t height = 0;           // of all of them
  std::int64_t width = 0;            //
  bool has_begun = false;            // whether there was a prediction, whose state is `state`
  std::vector<std::uint8_t> frames;  // RGB bytes (count, height, width, 3)
  State state;                       // of a model with a state
};

constexpr std::int64_t kMaxPushed = std::int64_t{1} << 62;  // of a saved stream: it can go on counting

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

// --- Saved streams
// ----------------------------------------------------------------------------------------------------
//
// kMagic; the checksum of the rest; the model's metadata and the options, as their checksum; the members of
// Slot.

const char kMagic[] = "sifa-stream-2";

std::uint32_t checksum_of(const void* data, std::size_t size) {
  return static_cast<std::uint32_t>(crc32_z(0, static_cast<const Bytef*>(data), size));
}

class Writer {
 public:
  template <typename T>
  void add(T number) {
    add(&number, sizeof number);
  }

  void add(const void* data, std::size_t size) {
    bytes.resize(bytes.size() + size);
    if (size > 0) std::memcpy(&bytes[bytes.size() - size], data, size);
  }

  std::vector<std::uint8_t> bytes;
};

class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  template <typename T>
  T number() {
    T number;
    std::memcpy(&number, take(sizeof number), sizeof number);
    return number;
  }

  const std::uint8_t* take(std::size_t size) {
    if (size > left_) refuse("the saved stream is too short");
    const std::uint8_t* begin = data_;
    data_ += size;
    left_ -= size;
    return begin;
  }

  std::size_t left() const { return left_; }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

}  // namespace

struct StreamBatch::Impl {
  Model model;
  std::int64_t window = 0;        // frames that a stream's first prediction is made of
  std::int64_t hop = 0;           // frames from one prediction to the next
  std::int64_t frame_stride = 0;  // every how many of the frames pushed one is kept
  std::vector<Slot> slots;
  mutable std::recursive_mutex mutex;  // a Stream holds it over a push and the prediction that it makes due

  const Metadata& metadata() const { return model.metadata; }
  bool is_stateful() const { return metadata().kind != "clip"; }

  // Whether the next frame goes with earlier ones, in a prediction that frames of one size are asked for.
  bool has_size(const Slot& slot) const {
    return slot.count > 0 || (metadata().kind == "window" && slot.has_begun);
  }

  Slot& slot(std::size_t stream) {
    if (stream >= slots.size()) {
      refuse("there is no stream " + std::to_string(stream) + ": there are " + std::to_string(slots.size()) +
             ", counted from 0");
    }
    return slots[stream];
  }

  std::int64_t due_at(const Slot& slot) const { return is_stateful() && slot.has_begun ? hop : window; }

  bool is_due(const Slot& slot) const { return slot.count == due_at(slot); }

  void require_not_due(std::size_t stream, const char* what) const {
    if (!is_due(slots[stream])) return;
    refuse("stream " + std::to_string(stream) + " has a prediction due: run it before " + what);
  }

  std::vector<std::size_t> group_of(std::size_t first, const std::vector<bool>& done) const;
  std::vector<float> run(const std::vector<std::size_t>& group, std::vector<State>& after);
  std::uint32_t fingerprint() const;
};

// The streams from `first` on that are due, not done, and have as many frames of the same size.
std::vector<std::size_t> StreamBatch::Impl::group_of(std::size_t first, const std::vector<bool>& done) const {
  std::vector<std::size_t> group;
  for (std::size_t i = first; i < slots.size(); ++i) {
    const bool is_alike = slots[i].height == slots[first].height && slots[i].width == slots[first].width &&
                          slots[i].count == slots[first].count;
    if (is_due(slots[i]) && !done[i] && is_alike) group.push_back(i);
  }
  return group;
}

// The outputs for a group, row by row; its next states go into `after`.
std::vector<float> StreamBatch::Impl::run(const std::vector<std::size_t>& group, std::vector<State>& after) {
  const Slot& first = slots[group.front()];
  Frames frames{first.frames.data(), static_cast<std::int64_t>(group.size()), first.count, first.height,
                first.width};
  std::vector<std::uint8_t> gathered;
  if (group.size() > 1) {
    gathered.reserve(group.size() * first.frames.size());
    for (const std::size_t i : group)
      gathered.insert(gathered.end(), slots[i].frames.begin(), slots[i].frames.end());
    frames.data = gathered.data();
  }
  if (!is_stateful()) return model.engine->classify(frames);

  std::vector<bool> begins;
  std::vector<State> states;
  for (const std::size_t i : group) {
    begins.push_back(!slots[i].has_begun);
    states.push_back(slots[i].state);
  }
  std::vector<float> outputs = model.engine->step(frames, states, begins);
  for (std::size_t row = 0; row < group.size(); ++row) after[group[row]] = std::move(states[row]);
  return outputs;
}

std::uint32_t StreamBatch::Impl::fingerprint() const {
  const std::string text = metadata().json + std::to_string(frame_stride) + " " + std::to_string(hop);
  return checksum_of(text.data(), text.size());
}

StreamBatch::StreamBatch(const std::string& path, std::size_t streams, const StreamOptions& options) {
  if (streams < 1 || streams > static_cast<std::size_t>(kMaxExtent)) {
    refuse("streams must be 1 to 65536, got " + std::to_string(streams));
  }
  if (options.frame_stride < 0) {
    refuse("frame_stride must be at least 1, or 0 for the model's own, got " +
           std::to_string(options.frame_stride));
  }
  auto impl = std::make_unique<Impl>();
  impl->model = load_model(path, options);
  const Metadata& metadata = impl->metadata();
  const std::int64_t step = metadata.temporal_stride;
  const bool is_causal = metadata.kind == "streaming";
  impl->window = is_causal ? step : metadata.num_frames;
  impl->hop = options.hop == 0 ? step : options.hop;
  impl->frame_stride = options.frame_stride == 0 ? metadata.frame_stride : options.frame_stride;
  if (impl->hop < 1 || impl->hop > impl->window || impl->hop % step != 0) {
    refuse("hop must be " +
           (is_causal ? std::to_string(step) + ", the frames of one step of this model"
                      : "a multiple of " + std::to_string(step) + " up to " + std::to_string(impl->window) +
                            " with this model") +
           ", got " + std::to_string(options.hop));
  }
  impl->slots.resize(streams);
  for (Slot& slot : impl->slots) slot.state = impl->model.engine->new_state(metadata);
  impl_ = std::move(impl);
}

StreamBatch::~StreamBatch() = default;
StreamBatch::StreamBatch(StreamBatch&&) noexcept = default;
StreamBatch& StreamBatch::operator=(StreamBatch&&) noexcept = default;

const Metadata& StreamBatch::metadata() const { return impl_->metadata(); }

std::size_t StreamBatch::size() const { return impl_->slots.size(); }

bool StreamBatch::push(std::size_t stream, const Frame& frame) {
  const std::lock_guard lock(impl_->mutex);
  Slot& slot = impl_->slot(stream);
  const auto size_of = [](std::int64_t height, std::int64_t width) {
    return std::to_string(height) + " x " + std::to_string(width);
  };
  impl_->require_not_due(stream, "its next frame");
  if (frame.data == nullptr) refuse("a frame must be bytes (height, width, 3): there is no data");
  if (frame.height < 1 || frame.width < 1 || frame.height > kMaxExtent || frame.width > kMaxExtent) {
    refuse("a frame must be bytes (height, width, 3): got " + size_of(frame.height, frame.width) +
           ", a side must be 1 to 65536 pixels");
  }
  if (slot.pushed % impl_->frame_stride == 0) {
    if (impl_->has_size(slot) && (frame.height != slot.height || frame.width != slot.width)) {
      refuse("stream " + std::to_string(stream) + " has frames of " + size_of(slot.height, slot.width) +
             ", got one of " + size_of(frame.height, frame.width) + "; reset the stream to change the size");
    }
    slot.frames.insert(slot.frames.end(), frame.data, frame.data + frame.height * frame.width * 3);
    slot.height = frame.height;
    slot.width = frame.width;
    ++slot.count;
  }
  ++slot.pushed;
  return impl_->is_due(slot);
}

std::vector<std::optional<StreamPrediction>> StreamBatch::run() {
  const std::lock_guard lock(impl_->mutex);
  std::vector<Slot>& slots = impl_->slots;
  std::vector<std::optional<StreamPrediction>> predictions(slots.size());
  std::vector<State> after(slots.size());
  std::vector<bool> done(slots.size(), false);
  const auto classes = static_cast<std::ptrdiff_t>(impl_->metadata().labels.size());
  for (std::size_t first = 0; first < slots.size(); ++first) {
    if (done[first] || !impl_->is_due(slots[first])) continue;
    const std::vector<std::size_t> group = impl_->group_of(first, done);
    const std::vector<float> outputs = impl_->run(group, after);
    check_outputs(outputs, static_cast<std::int64_t>(group.size()), impl_->metadata());
    auto row = outputs.begin();
    for (const std::size_t i : group) {
      predictions[i] = {{row, row + classes}, slots[i].pushed - 1};
      row += classes;
      done[i] = true;
    }
  }
  // Only now: whatever failed above has left every stream as it was.
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!done[i]) continue;
    Slot& slot = slots[i];
    const std::int64_t spent = impl_->is_stateful() ? slot.count : impl_->hop;
    slot.frames.erase(slot.frames.begin(), slot.frames.begin() + spent * slot.height * slot.width * 3);
    slot.count -= spent;
    impl_->model.engine->reuse(std::exchange(slot.state, std::move(after[i])));
    slot.has_begun = true;
  }
  return predictions;
}

void StreamBatch::take_back(std::size_t stream) {
  const std::lock_guard lock(impl_->mutex);
  Slot& slot = impl_->slot(stream);
  --slot.pushed;
  --slot.count;
  slot.frames.resize(static_cast<std::size_t>(slot.count * slot.height * slot.width * 3));
}

void StreamBatch::reset(std::size_t stream) {
  const std::lock_guard lock(impl_->mutex);
  Slot& slot = impl_->slot(stream);
  // The first step does not look at the state, so that it may stay.
  Slot fresh;
  fresh.state = std::move(slot.state);
  slot = std::move(fresh);
}

std::vector<std::uint8_t> StreamBatch::save(std::size_t stream) const {
  const std::lock_guard lock(impl_->mutex);
  const Slot& slot = impl_->slot(stream);
  impl_->require_not_due(stream, "saving it");
  Writer body;
  body.add(impl_->fingerprint());
  for (const std::int64_t number : {slot.pushed, slot.count, slot.height, slot.width}) body.add(number);
  body.add(static_cast<std::uint8_t>(slot.has_begun));
  body.add(slot.frames.data(), slot.frames.size());
  for (const at::Tensor& tensor : slot.state) {
    const at::Tensor values = translated(ErrorCode::kOther, "the state of a stream cannot be read",
                                         [&] { return tensor.to(at::kCPU).contiguous(); });
    body.add(values.const_data_ptr(), values.nbytes());
  }
  Writer whole;
  whole.add(kMagic, sizeof kMagic);
  whole.add(checksum_of(body.bytes.data(), body.bytes.size()));
  whole.add(body.bytes.data(), body.bytes.size());
  return std::move(whole.bytes);
}

void StreamBatch::restore(std::size_t stream, const std::vector<std::uint8_t>& bytes) {
  const std::lock_guard lock(impl_->mutex);
  Slot& slot = impl_->slot(stream);
  Reader reader(bytes.data(), bytes.size());
  if (reader.left() < sizeof kMagic || std::memcmp(reader.take(sizeof kMagic), kMagic, sizeof kMagic) != 0) {
    refuse("these bytes are not a saved stream");
  }
  const auto checksum = reader.number<std::uint32_t>();
  if (checksum_of(bytes.data() + bytes.size() - reader.left(), reader.left()) != checksum) {
    refuse("the saved stream is damaged: its checksum does not match");
  }
  if (reader.number<std::uint32_t>() != impl_->fingerprint()) {
    refuse("the stream was saved with another model file, or with another frame_stride or hop");
  }
  Slot saved;
  for (std::int64_t* number : {&saved.pushed, &saved.count, &saved.height, &saved.width})
    *number = reader.number<std::int64_t>();
  saved.has_begun = reader.number<std::uint8_t>() != 0;
  const std::int64_t least = impl_->has_size(saved) ? 1 : 0;
  const bool is_sane = saved.count >= 0 && saved.count < impl_->due_at(saved) &&
                       saved.pushed >= (saved.has_begun ? impl_->window : saved.count) &&
                       saved.pushed <= kMaxPushed && saved.height >= least && saved.height <= kMaxExtent &&
                       saved.width >= least && saved.width <= kMaxExtent;
  if (!is_sane) refuse("the saved stream is damaged: its counts contradict each other");
  const auto size = static_cast<std::size_t>(saved.count * saved.height * saved.width * 3);
  const std::uint8_t* frames = reader.take(size);
  saved.frames.assign(frames, frames + size);
  translated(ErrorCode::kOther, "the state of a stream cannot be written", [&] {
    const c10::InferenceMode guard;
    for (const at::Tensor& like : slot.state) {
      at::Tensor values = at::empty_like(like, at::TensorOptions(at::kCPU));
      std::memcpy(values.mutable_data_ptr(), reader.take(values.nbytes()), values.nbytes());
      saved.state.push_back(values.to(like.device()));
    }
  });
  if (reader.left() != 0) refuse("the saved stream is damaged: it is too long");
  slot = std::move(saved);
}

std::optional<StreamPrediction> Stream::push(const Frame& frame) {
  const std::lock_guard lock(batch_.impl_->mutex);
  if (!batch_.push(0, frame)) return std::nullopt;
  try {
    return batch_.run()[0];
  } catch (...) {
    batch_.take_back(0);
    throw;
  }
}

}  // namespace sifa
