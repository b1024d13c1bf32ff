// LibTorch's exceptions as ours.
#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "sifa/error.h"

namespace sifa {

/// What went wrong, in one line. TorchScript's interpreter says it behind a traceback.
std::string reason_of(const std::string& message);

/// Runs `function`; whatever LibTorch throws becomes an Error of `code`, or of kOutOfMemory where a GPU has
/// no more, one line behind `what`.
template <typename Function>
auto translated(ErrorCode code, const std::string& what, Function function) {
  try {
    return function();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const c10::OutOfMemoryError& error) {
    throw Error(ErrorCode::kOutOfMemory,
                "the GPU is out of memory: " + reason_of(error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    throw Error(code, what + ": " + reason_of(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    throw Error(code, what + ": " + reason_of(error.what()));
  }
}

}  // namespace sifa
