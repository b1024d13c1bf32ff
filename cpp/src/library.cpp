// dladdr and dlopen, in one place.
#include "library.h"

#include <dlfcn.h>

#include <filesystem>

#include "sifa/error.h"

namespace sifa {

std::string library_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&library_folder), &info) == 0 || info.dli_fname == nullptr) {
    throw Error(ErrorCode::kOther, "cannot tell where libsifa_runtime.so is");
  }
  const std::filesystem::path folder = std::filesystem::path(info.dli_fname).parent_path();
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::canonical(folder.empty() ? "." : folder, error);
  return (error ? folder : canonical).string();
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

void* open_library(const std::string& path, std::string& reason) {
  // Resolved now, so that a library that does not fit is refused here and not at its first call; local, so
  // that it cannot change what other libraries of the process find.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) reason = dlerror();
  return handle;
}

}  // namespace sifa
