// The Python module sifa.runtime: the C++ runtime's classes, NumPy in and NumPy out.
//
// It holds no logic of its own. The GIL is released while a model loads and runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>

#include "sifa/classifier.h"
#include "sifa/doctor.h"
#include "sifa/hysteresis.h"
#include "sifa/stream.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

std::string shape_of(const py::array& array) {
  std::string text;
  for (py::ssize_t i = 0; i < array.ndim(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  return py::str(array.dtype()).cast<std::string>() + " (" + text + ")";
}

py::object parsed(const std::string& json) { return py::module_::import("json").attr("loads")(json); }

// A (count) vector as a NumPy array of `shape`.
py::array_t<float> as_array(const std::vector<float>& values, const std::vector<py::ssize_t>& shape) {
  py::array_t<float> array(shape);
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

py::array_t<float> classify(const sifa::Classifier& classifier, const py::array& given) {
  const bool is_batch = given.ndim() == 5;
  if (!py::isinstance<py::array_t<std::uint8_t>>(given) || (given.ndim() != 4 && !is_batch) ||
      given.shape(given.ndim() - 1) != 3) {
    throw sifa::Error(
        sifa::ErrorCode::kInvalidArgument,
        "frames must be uint8 (T, H, W, 3) or (N, T, H, W, 3), RGB last, got " + shape_of(given));
  }
  const auto frames =
      py::array_t<std::uint8_t, py::array::c_style>::ensure(given);  // copies only the unordered
  if (!frames) throw py::error_already_set();
  const int first = is_batch ? 1 : 0;
  const sifa::Frames clips{frames.data(), is_batch ? frames.shape(0) : 1, frames.shape(first),
                           frames.shape(first + 1), frames.shape(first + 2)};
  std::vector<float> probabilities;
  {
    const py::gil_scoped_release release;
    probabilities = classifier.classify(clips);
  }
  const auto classes = static_cast<py::ssize_t>(classifier.labels().size());
  return is_batch ? as_array(probabilities, {frames.shape(0), classes}) : as_array(probabilities, {classes});
}

// An array (H, W, 3) in order, copied only if it is not.
py::array_t<std::uint8_t> as_frame(const py::array& given) {
  if (!py::isinstance<py::array_t<std::uint8_t>>(given) || given.ndim() != 3 || given.shape(2) != 3) {
    throw sifa::Error(sifa::ErrorCode::kInvalidArgument,
                      "frame must be uint8 (H, W, 3), RGB last, got " + shape_of(given));
  }
  auto frame = py::array_t<std::uint8_t, py::array::c_style>::ensure(given);
  if (!frame) throw py::error_already_set();
  return frame;
}

sifa::Frame pointing_at(const py::array_t<std::uint8_t>& array) {
  return {array.data(), array.shape(0), array.shape(1)};
}

sifa::ClassifierOptions checked_options(const std::string& device, std::optional<int> threads,
                                        bool cuda_graphs) {
  if (threads && *threads < 1) {
    throw sifa::Error(sifa::ErrorCode::kInvalidArgument,
                      "threads must be at least 1, got " + std::to_string(*threads));
  }
  return {device, threads.value_or(0), cuda_graphs};
}

sifa::StreamOptions checked_options(const std::string& device, std::optional<int> threads,
                                    std::optional<std::int64_t> frame_stride, std::optional<std::int64_t> hop,
                                    bool cuda_graphs) {
  for (const auto& [name, given] : {std::pair{"frame_stride", frame_stride}, {"hop", hop}}) {
    if (given && *given < 1) {
      throw sifa::Error(sifa::ErrorCode::kInvalidArgument,
                        std::string(name) + " must be at least 1, got " + std::to_string(*given));
    }
  }
  return {checked_options(device, threads, cuda_graphs), frame_stride.value_or(0), hop.value_or(0)};
}

py::bytes as_bytes(const std::vector<std::uint8_t>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::vector<std::uint8_t> from_bytes(const py::bytes& given) {
  const std::string_view view = given;
  return {view.begin(), view.end()};
}

template <typename Class>
void add_labels_and_metadata(py::class_<Class>& type) {
  type.def_property_readonly("labels", &Class::labels, "class names, in the order of the probabilities")
      .def_property_readonly(
          "metadata", [](const Class& self) { return parsed(self.metadata().json); },
          "what the file says about itself, a dict");
}

}  // namespace

PYBIND11_MODULE(runtime, module) {
  module.doc() =
      "The C++ runtime: classifies clips, videos and streams with a model that `sifa export` wrote. "
      "Inference "
      "only.";

  // Never destroyed: errors may still be raised while the interpreter shuts down.
  static PyObject* const error_type =
      PyErr_NewExceptionWithDoc("sifa.runtime.Error",
                                "What the C++ runtime raises. `code` is the exit code that `sifa-run` would "
                                "end with (see `sifa-run --help`).",
                                PyExc_RuntimeError, nullptr);
  if (error_type == nullptr) throw py::error_already_set();
  module.attr("Error") = py::handle(error_type);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const sifa::Error& error) {
      // A path in the message need not be UTF-8.
      const py::object message = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
          error.what(), static_cast<Py_ssize_t>(std::string(error.what()).size()), "replace"));
      const py::object value = py::handle(error_type)(message);
      value.attr("code") = static_cast<int>(error.code());
      PyErr_SetObject(error_type, value.ptr());
    }
  });

  py::class_<sifa::VideoPrediction>(module, "VideoPrediction", "The answer to `Classifier.classify_video`.")
      .def_property_readonly(
          "probabilities",
          [](const sifa::VideoPrediction& self) {
            return as_array(self.probabilities, {static_cast<py::ssize_t>(self.probabilities.size())});
          },
          "float32 (num_classes,)")
      .def_readonly("total_frames", &sifa::VideoPrediction::total_frames, "frames in the whole video")
      .def_readonly("indices", &sifa::VideoPrediction::indices, "which of them were classified")
      .def_readonly("decode_ms", &sifa::VideoPrediction::decode_ms, "time to read the frames")
      .def_readonly("model_ms", &sifa::VideoPrediction::model_ms, "time of preprocessing and network");

  py::class_<sifa::Classifier> classifier(
      module, "Classifier",
      "A model loaded by the C++ runtime.\n\n"
      "Different instances may run in different threads at the same time; calls on one "
      "instance are serialised. A model file is a program: load only files that you trust.");
  classifier
      .def(py::init([](const std::filesystem::path& path, const std::string& device,
                       std::optional<int> threads, bool cuda_graphs) {
             const sifa::ClassifierOptions options = checked_options(device, threads, cuda_graphs);
             const py::gil_scoped_release release;
             return std::make_unique<sifa::Classifier>(path.string(), options);
           }),
           "path"_a, "device"_a = "cpu", "threads"_a = py::none(), "cuda_graphs"_a = true,
           "Load the file `path` on `device` (\"cpu\", \"cuda\" or \"cuda:<index>\") and check it on its\n"
           "reference input. `threads` sets how many threads one operation uses, for the whole process.\n"
           "`cuda_graphs`: on a GPU, run frames of a shape that comes again by a CUDA graph, which holds a\n"
           "second set of the network's features in memory. Raises Error.")
      .def("classify", &classify, "frames"_a,
           "Probabilities, float32 (num_classes,) or (N, num_classes), of frames, uint8 RGB (T, H, W, 3) or\n"
           "(N, T, H, W, 3) of any H and W. Raises Error.")
      .def(
          "classify_video",
          [](const sifa::Classifier& self, const std::filesystem::path& path) {
            const py::gil_scoped_release release;
            return self.classify(path.string());
          },
          "path"_a,
          "Classify the clip that the metadata says to sample from the video file `path`. Raises Error.");
  add_labels_and_metadata(classifier);

  py::class_<sifa::StreamPrediction>(module, "StreamPrediction", "What a stream answers when it is due.")
      .def_property_readonly(
          "probabilities",
          [](const sifa::StreamPrediction& self) {
            return as_array(self.probabilities, {static_cast<py::ssize_t>(self.probabilities.size())});
          },
          "float32 (num_classes,)")
      .def_readonly("frame", &sifa::StreamPrediction::frame,
                    "the newest frame in it, counted from 0 as pushed since the last reset");

  constexpr char kOptions[] =
      "`frame_stride`: every how many of the frames pushed one is used, by default the distance that the\n"
      "model was trained with. `hop`: used frames between two predictions, a multiple of the model's\n"
      "temporal_stride and by default that. `device`, `threads` and `cuda_graphs`: see Classifier. Raises "
      "Error.";

  py::class_<sifa::Stream> stream(
      module, "Stream",
      "One live video through one model: push its frames, get a prediction whenever one is due.\n\n"
      "A clip's model is run on the last frames, whole; a window's (`sifa export --window`) gives the same\n"
      "and computes what does not depend on the window once per step; a causal one (`--streaming`)\n"
      "keeps a state, and a step costs the same however long the history.");
  stream
      .def(py::init([](const std::filesystem::path& path, const std::string& device,
                       std::optional<int> threads, std::optional<std::int64_t> frame_stride,
                       std::optional<std::int64_t> hop, bool cuda_graphs) {
             const sifa::StreamOptions options =
                 checked_options(device, threads, frame_stride, hop, cuda_graphs);
             const py::gil_scoped_release release;
             return std::make_unique<sifa::Stream>(path.string(), options);
           }),
           "path"_a, "device"_a = "cpu", "threads"_a = py::none(), "frame_stride"_a = py::none(),
           "hop"_a = py::none(), "cuda_graphs"_a = true, kOptions)
      .def(
          "push",
          [](sifa::Stream& self, const py::array& given) {
            const py::array_t<std::uint8_t> frame = as_frame(given);
            const py::gil_scoped_release release;
            return self.push(pointing_at(frame));
          },
          "frame"_a,
          "Take the next frame, uint8 (H, W, 3) RGB; return a StreamPrediction if one is due, or None.")
      .def("reset", &sifa::Stream::reset, "Begin anew.")
      .def(
          "save", [](const sifa::Stream& self) { return as_bytes(self.save()); },
          "Everything that the stream remembers, for `restore` with the same model file and options.")
      .def(
          "restore", [](sifa::Stream& self, const py::bytes& bytes) { self.restore(from_bytes(bytes)); },
          "bytes"_a, "Go on where a stream was saved. Raises Error, and is then as it was.");
  add_labels_and_metadata(stream);

  py::class_<sifa::StreamBatch> batch(
      module, "StreamBatch",
      "Several streams through one model, batched when they are due together; each has its own state.");
  batch
      .def(py::init([](const std::filesystem::path& path, std::int64_t streams, const std::string& device,
                       std::optional<int> threads, std::optional<std::int64_t> frame_stride,
                       std::optional<std::int64_t> hop, bool cuda_graphs) {
             const sifa::StreamOptions options =
                 checked_options(device, threads, frame_stride, hop, cuda_graphs);
             const py::gil_scoped_release release;
             // Negative numbers become 0, which is refused.
             const auto count = static_cast<std::size_t>(std::max<std::int64_t>(streams, 0));
             return std::make_unique<sifa::StreamBatch>(path.string(), count, options);
           }),
           "path"_a, "streams"_a, "device"_a = "cpu", "threads"_a = py::none(), "frame_stride"_a = py::none(),
           "hop"_a = py::none(), "cuda_graphs"_a = true, kOptions)
      .def("__len__", &sifa::StreamBatch::size)
      .def(
          "push",
          [](sifa::StreamBatch& self, std::size_t index, const py::array& given) {
            const py::array_t<std::uint8_t> frame = as_frame(given);
            const py::gil_scoped_release release;
            return self.push(index, pointing_at(frame));
          },
          "stream"_a, "frame"_a, "Give a stream its next frame; return whether a prediction is now due.")
      .def("run", &sifa::StreamBatch::run, py::call_guard<py::gil_scoped_release>(),
           "Make the predictions that are due: a list with a StreamPrediction or None per stream.")
      .def("reset", &sifa::StreamBatch::reset, "stream"_a, "Let a stream begin anew.")
      .def(
          "save", [](const sifa::StreamBatch& self, std::size_t index) { return as_bytes(self.save(index)); },
          "stream"_a, "See Stream.save.")
      .def(
          "restore",
          [](sifa::StreamBatch& self, std::size_t index, const py::bytes& bytes) {
            self.restore(index, from_bytes(bytes));
          },
          "stream"_a, "bytes"_a, "See Stream.restore.");
  add_labels_and_metadata(batch);

  py::class_<sifa::Hysteresis>(
      module, "Hysteresis",
      "A decision that does not flicker: a class is decided for when its probability is the highest and\n"
      "at least `enter`, and until it falls below `leave`.")
      .def(py::init<float, float>(), "enter"_a, "leave"_a, "Raises Error unless 0 < leave <= enter <= 1.")
      .def("update", &sifa::Hysteresis::update, "probabilities"_a,
           "Take the next probabilities; return the index of the class decided for, or None.")
      .def_property_readonly("decision", &sifa::Hysteresis::decision, "what `update` last returned")
      .def("reset", &sifa::Hysteresis::reset, "Decide for nothing.");

  module.def(
      "examine",
      [] {
        py::list list;
        for (const sifa::Finding& finding : sifa::examine()) {
          list.append(py::dict("name"_a = finding.name, "value"_a = finding.value,
                               "problem"_a = finding.problem, "fix"_a = finding.fix));
        }
        return list;
      },
      "What this machine and installation have for the runtime: dicts of name, value, problem and fix.");
  module.def(
      "read_metadata",
      [](const std::filesystem::path& path) {
        std::string json;
        {
          const py::gil_scoped_release release;
          json = sifa::read_metadata(path.string()).json;
        }
        return parsed(json);
      },
      "path"_a,
      "The metadata of the model file `path`, a dict, read and checked without loading its graph. Raises "
      "Error.");
}
