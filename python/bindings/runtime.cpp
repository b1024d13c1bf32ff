// The Python module sifa.runtime: the C++ runtime's Classifier, NumPy in and NumPy out.
//
// It holds no logic of its own. The GIL is released while a model loads and runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>

#include "sifa/classifier.h"

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

}  // namespace

PYBIND11_MODULE(runtime, module) {
  module.doc() =
      "The C++ runtime: classifies clips and videos with a model that `sifa export` wrote. Inference only.";

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

  py::class_<sifa::Classifier>(
      module, "Classifier",
      "A model loaded by the C++ runtime.\n\n"
      "Different instances may run in different threads at the same time; calls on one "
      "instance are serialised. A model file is a program: load only files that you trust.")
      .def(py::init(
               [](const std::filesystem::path& path, const std::string& device, std::optional<int> threads) {
                 if (threads && *threads < 1) {
                   throw sifa::Error(sifa::ErrorCode::kInvalidArgument,
                                     "threads must be at least 1, got " + std::to_string(*threads));
                 }
                 const py::gil_scoped_release release;
                 return std::make_unique<sifa::Classifier>(
                     path.string(), sifa::ClassifierOptions{device, threads.value_or(0)});
               }),
           "path"_a, "device"_a = "cpu", "threads"_a = py::none(),
           "Load the file `path` on `device` (\"cpu\", \"cuda\" or \"cuda:<index>\") and check it on its\n"
           "reference input. `threads` sets how many threads one operation uses, for the whole process.\n"
           "Raises Error.")
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
          "Classify the clip that the metadata says to sample from the video file `path`. Raises Error.")
      .def_property_readonly("labels", &sifa::Classifier::labels,
                             "class names, in the order of the probabilities")
      .def_property_readonly(
          "metadata", [](const sifa::Classifier& self) { return parsed(self.metadata().json); },
          "what the file says about itself, a dict");

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
