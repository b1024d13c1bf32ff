// Operator libraries and the dispatcher: the dispatcher is asked before anything is loaded.
#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <cstdlib>
#include <mutex>
#include <optional>

#include "library.h"
#include "one_line.h"
#include "sifa/error.h"

namespace sifa {
namespace {

const char kName[] = "sifa::inter_frame_attention";

std::optional<c10::OperatorHandle> find_operator() {
  return c10::Dispatcher::singleton().findSchema({kName, ""});
}

bool has_cuda_kernel(const c10::OperatorHandle& handle) {
  return handle.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
}

// Held from asking the dispatcher until the library is loaded.
std::mutex mutex;

bool is_given() {
  const char* given = std::getenv("SIFA_OPS_LIBRARY");
  return given != nullptr && given[0] != '\0';
}

std::string operator_library() {
  std::string path = is_given() ? std::getenv("SIFA_OPS_LIBRARY") : library_folder() + "/libsifa_ops.so";
  if (path.find('/') == std::string::npos)
    path = "./" + path;  // a file, not a name for the linker to look for
  return path;
}

void load(const std::string& path, const std::string& way_out) {
  std::string reason;
  if (!file_exists(path)) {
    throw Error(ErrorCode::kOperatorLibrary, "operator library not found: " + path + "; " + way_out);
  }
  if (open_library(path, reason) == nullptr) {
    throw Error(ErrorCode::kOperatorLibrary,
                "operator library cannot be loaded: " + one_line(reason) + "; " + way_out);
  }
}

}  // namespace

void load_operators() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (find_operator()) return;
  const std::string path = operator_library();
  load(path, is_given() ? "that is what SIFA_OPS_LIBRARY says"
                        : "set SIFA_OPS_LIBRARY to the libsifa_ops.so of your installation");
  if (!find_operator()) {
    throw Error(ErrorCode::kOperatorLibrary,
                path + " is not SIFA's operator library: it does not define " + kName);
  }
}

void require_cuda_kernels() {
  load_operators();
  const std::lock_guard<std::mutex> lock(mutex);
  if (has_cuda_kernel(*find_operator())) return;
  const std::string path = operator_library();
  load(path.substr(0, path.rfind('/')) + "/libsifa_ops_cuda.so", "build SIFA with CUDA, or use device cpu");
  if (!has_cuda_kernel(*find_operator())) {
    throw Error(ErrorCode::kOperatorLibrary,
                "libsifa_ops_cuda.so has no kernels for this operator: build SIFA again, or use device cpu");
  }
}

void check_operator_schema(const std::string& schema, const std::string& path) {
  const c10::FunctionSchema& loaded = find_operator()->schema();
  bool fits = false;
  try {
    fits = loaded.isBackwardCompatibleWith(torch::jit::parseSchema(schema));
  } catch (const std::exception&) {
    // not a schema: it does not fit
  }
  if (!fits) {
    throw Error(ErrorCode::kOperatorLibrary, path + " needs another operator library: it was exported for `" +
                                                 one_line(schema) + "`, the one in this process has `" +
                                                 c10::toString(loaded) +
                                                 "`; export the model again, or use the SIFA that wrote it");
  }
}

}  // namespace sifa
