// Operator libraries and the dispatcher: the dispatcher is asked before anything is loaded.
#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <cstdlib>
#include <filesystem>
#include <mutex>

#include "library.h"
#include "one_line.h"
#include "sifa/error.h"

namespace sifa {
namespace {

const char kName[] = "sifa::inter_frame_attention";

std::optional<c10::OperatorHandle> find_operator() {
  return c10::Dispatcher::singleton().findSchema({kName, ""});
}

void load(const std::string& path, const std::string& way_out) {
  std::string reason;
  if (!std::filesystem::exists(path)) {
    throw Error(ErrorCode::kOperatorLibrary, "operator library not found: " + path + "; " + way_out);
  }
  if (open_library(path, reason) == nullptr) {
    throw Error(ErrorCode::kOperatorLibrary, "operator library cannot be loaded: " + one_line(reason));
  }
}

}  // namespace

void load_operators() {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const char* given = std::getenv("SIFA_OPS_LIBRARY");
  const bool is_given = given != nullptr && given[0] != '\0';
  const std::filesystem::path path = is_given ? std::filesystem::absolute(given)
                                              : std::filesystem::path(library_folder()) / "libsifa_ops.so";

  auto found = find_operator();
  if (!found) {
    load(path.string(), is_given ? "that is what SIFA_OPS_LIBRARY says"
                                 : "set SIFA_OPS_LIBRARY to the libsifa_ops.so of your installation");
    found = find_operator();
    if (!found) {
      throw Error(ErrorCode::kOperatorLibrary,
                  path.string() + " is not SIFA's operator library: it does not define " + kName);
    }
  }
  // Without a GPU there are no CUDA tensors, and the CUDA half is not needed.
  const auto cuda = path.parent_path() / "libsifa_ops_cuda.so";
  if (!found->hasKernelForDispatchKey(c10::DispatchKey::CUDA) &&
      at::detail::getCUDAHooks().deviceCount() > 0 && std::filesystem::exists(cuda)) {
    load(cuda.string(), "");
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
                                                 c10::toString(loaded) + "`");
  }
}

}  // namespace sifa
