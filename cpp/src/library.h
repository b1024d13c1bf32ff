// Finds and loads the shared libraries that lie beside this one.
#pragma once

#include <string>

namespace sifa {

/// The folder of the shared library that this code is in. Throws Error(kOther).
std::string library_folder();

/// Whether there is a file `path`.
bool file_exists(const std::string& path);

/// Loads the shared library `path` and returns its handle; a failure leaves the reason in `reason` and
/// returns null.
void* open_library(const std::string& path, std::string& reason);

}  // namespace sifa
