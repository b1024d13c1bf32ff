// What a runtime that is built without CUDA has in the place of cuda_engine.cpp: the refusal, and
// a GPU's number for its name.
#include "engines.h"
#include "sifa/error.h"

namespace sifa {

std::unique_ptr<Engine> make_cuda_engine(std::unique_ptr<Program> /*program*/, const at::Device& device,
                                         bool /*with_graphs*/) {
  throw Error(ErrorCode::kDeviceUnavailable,
              "device " + device.str() +
                  " is not available: this runtime was built without CUDA; use cpu, or build SIFA with "
                  "SIFA_CUDA=ON");
}

std::string describe_gpu(int index) { return "GPU " + std::to_string(index); }

}  // namespace sifa
