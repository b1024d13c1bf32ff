// The runtime on a GPU: the CPU's answers, the same by CUDA graphs and without, nothing allocated per frame,
// and out of memory as an error like any other. Skipped where there is no GPU.
//
// SIFA_TEST_CUDA_PACKAGES names a folder with model.pt2 and stream.pt2, compiled there for CUDA, and model.pt
// and stream.pt of the same models; without it no package is tested.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/cuda/CUDACachingAllocator.h>

#include <thread>

#include "runtime_data.h"
#include "sifa/stream.h"

namespace {

using sifa::Classifier;
using sifa::ClassifierOptions;
using sifa::Error;
using sifa::ErrorCode;
using sifa::StreamBatch;
using sifa::StreamOptions;

constexpr double kTolerance = 1e-4;  // from the CPU, in float32
constexpr int kFrames = 4;           // of model.pt
constexpr int kStep = 4;             // frames of a step of stream.pt and window.pt
constexpr int kSettled = 5;          // calls until a shape is replayed

ClassifierOptions on_gpu(bool graphs = true) {
  ClassifierOptions options;
  options.device = "cuda";
  options.cuda_graphs = graphs;
  return options;
}

StreamOptions streaming(const ClassifierOptions& options) {
  StreamOptions all;
  static_cast<ClassifierOptions&>(all) = options;
  all.frame_stride = 1;
  return all;
}

// Of the frames of a batch `seed` makes other ones.
std::vector<std::uint8_t> clips(int count, int height, int width, int seed = 0) {
  return pattern(count, kFrames, height, width, 7 * seed);
}

std::vector<float> classify(const Classifier& classifier, const std::vector<std::uint8_t>& values, int count,
                            int height, int width) {
  return classifier.classify({values.data(), count, kFrames, height, width});
}

c10::CachingDeviceAllocator::DeviceStats statistics() {
  return c10::cuda::CUDACachingAllocator::getDeviceStats(0);
}

// How often memory of the GPU was asked for, of LibTorch's cache or of the driver.
std::int64_t allocations() { return statistics().allocation[0].allocated; }

class Cuda : public testing::Test {
 protected:
  void SetUp() override {
    // Float32 is compared with float32. setAllowTF32CuDNN(false) left differences of TF32's size
    // (torch 2.11).
    setenv("NVIDIA_TF32_OVERRIDE", "0", 1);
    if (at::detail::getCUDAHooks().deviceCount() == 0) GTEST_SKIP() << "LibTorch sees no GPU";
    at::globalContext().lazyInitDevice(at::kCUDA);
  }
};

// A model file, on the CPU and on the GPU.
struct Pair {
  std::string cpu, gpu;
};

// One per engine. A package for the GPU is another file than the one for the CPU.
std::vector<Pair> pairs(const std::string& name) {
  std::vector<Pair> found{{data(name + ".pt"), data(name + ".pt")}};
  if (const char* folder = std::getenv("SIFA_TEST_CUDA_PACKAGES")) {
    const std::string path = std::string(folder) + "/" + name;
    found.push_back({path + ".pt", path + ".pt2"});
  } else {
    std::cout << "SIFA_TEST_CUDA_PACKAGES is not set: no package is tested\n";
  }
  return found;
}

TEST_F(Cuda, AnswersAsTheCpuWithAndWithoutGraphsForAnyShape) {
  for (const auto& [cpu_file, gpu_file] : pairs("model")) {
    const Classifier cpu(cpu_file), replayed(gpu_file, on_gpu()), plain(gpu_file, on_gpu(false));
    // Shapes in turns, so that each is replayed between others.
    for (int call = 0; call < kSettled + 2; ++call) {
      for (const auto& [count, height, width] : {std::array{1, 23, 31}, {3, 23, 31}, {2, 40, 17}}) {
        const std::vector<std::uint8_t> values = clips(count, height, width, call);
        const std::vector<float> expected = classify(cpu, values, count, height, width);
        expect_near(classify(plain, values, count, height, width), expected, kTolerance);
        expect_near(classify(replayed, values, count, height, width), expected, kTolerance);
      }
    }
  }
}

// More shapes than are kept, twice.
TEST_F(Cuda, ForgetsTheShapesLongestWithoutUse) {
  const Classifier cpu(data("model.pt")), gpu(data("model.pt"), on_gpu());
  for (int round = 0; round < 2; ++round) {
    for (int width = 20; width < 30; ++width) {
      const std::vector<std::uint8_t> values = clips(1, 23, width, round);
      for (int call = 0; call < kSettled; ++call) {
        expect_near(classify(gpu, values, 1, 23, width), classify(cpu, values, 1, 23, width), kTolerance);
      }
    }
  }
}

TEST_F(Cuda, AllocatesNothingPerCallOnceItReplays) {
  for (const auto& [cpu_file, gpu_file] : pairs("model")) {
    for (const bool graphs : {true, false}) {
      const Classifier classifier(gpu_file, on_gpu(graphs));
      const std::vector<std::uint8_t> values = clips(2, 23, 31);
      for (int call = 0; call < kSettled; ++call) classify(classifier, values, 2, 23, 31);
      const std::int64_t before = allocations();
      for (int call = 0; call < 100; ++call) classify(classifier, values, 2, 23, 31);
      const std::int64_t made = allocations() - before;
      // Without graphs every call allocates: what tells that the counter counts.
      if (graphs) {
        EXPECT_EQ(made, 0) << gpu_file;
      } else {
        EXPECT_GE(made, 100) << gpu_file;
      }
    }
  }
}

// Streams that are due at the same time and streams that are not, one that is reset, one that is restored.
void expect_same_streams(const std::string& cpu_file, const std::string& gpu_file, bool graphs) {
  constexpr int kStreams = 3, kSteps = 40, kHeight = 40, kWidth = 48;
  StreamBatch cpu(cpu_file, kStreams, streaming({})), gpu(gpu_file, kStreams, streaming(on_gpu(graphs)));
  const std::vector<std::uint8_t> video = pattern(1, kSteps * kStep, kHeight, kWidth);
  const auto frame = [&](int index) {
    return sifa::Frame{&video[static_cast<std::size_t>(index) * kHeight * kWidth * 3], kHeight, kWidth};
  };
  std::vector<std::uint8_t> saved_cpu, saved_gpu;
  int compared = 0;
  for (int step = 0; step < kSteps; ++step) {
    if (step == 20) cpu.reset(1), gpu.reset(1);
    if (step == 24) saved_cpu = cpu.save(0), saved_gpu = gpu.save(0);
    if (step == 31) cpu.restore(0, saved_cpu), gpu.restore(0, saved_gpu);
    for (int stream = 0; stream < kStreams; ++stream) {
      if (stream == 2 && step % 3 != 0) continue;  // slower than the others
      for (int i = 0; i < kStep; ++i) {
        // Each stream sees another part of the video.
        const int index = (step * kStep + i + 50 * stream) % (kSteps * kStep);
        cpu.push(static_cast<std::size_t>(stream), frame(index));
        gpu.push(static_cast<std::size_t>(stream), frame(index));
      }
    }
    const auto expected = cpu.run(), actual = gpu.run();
    for (int stream = 0; stream < kStreams; ++stream) {
      const auto& own = expected[static_cast<std::size_t>(stream)];
      ASSERT_EQ(own.has_value(), actual[static_cast<std::size_t>(stream)].has_value());
      if (!own) continue;
      ++compared;
      expect_near(actual[static_cast<std::size_t>(stream)]->probabilities, own->probabilities, kTolerance);
    }
  }
  EXPECT_GT(compared, 2 * kSteps);
}

TEST_F(Cuda, StatesStayRight) {
  for (const bool graphs : {true, false}) {
    for (const auto& [cpu_file, gpu_file] : pairs("stream")) expect_same_streams(cpu_file, gpu_file, graphs);
    expect_same_streams(data("window.pt"), data("window.pt"), graphs);
  }
}

TEST_F(Cuda, StreamsAllocateNothingPerStepOnceTheyReplay) {
  constexpr int kStreams = 2;
  const std::vector<std::uint8_t> video = pattern(1, kStep, 40, 48);
  for (const auto& [cpu_file, gpu_file] : pairs("stream")) {
    StreamBatch streams(gpu_file, kStreams, streaming(on_gpu()));
    const auto step = [&] {
      for (std::size_t i = 0; i < kStep; ++i) {
        for (std::size_t s = 0; s < kStreams; ++s) streams.push(s, {&video[i * 40 * 48 * 3], 40, 48});
      }
      ASSERT_TRUE(streams.run()[0].has_value());
    };
    for (int i = 0; i < kSettled; ++i) step();
    const std::int64_t before = allocations();
    for (int i = 0; i < 100; ++i) step();
    EXPECT_EQ(allocations(), before) << gpu_file;
  }
}

// Each with engines of its own, whose captures fall into the others' runs.
TEST_F(Cuda, SeveralEnginesOnSeveralThreads) {
  constexpr int kThreads = 4, kEngines = 3;
  const Classifier cpu(data("model.pt"));
  std::vector<std::vector<float>> expected;
  for (int count = 1; count <= kThreads; ++count) {
    expected.push_back(classify(cpu, clips(count, 23, 31), count, 23, 31));
  }
  std::vector<std::string> failures(kThreads);
  std::vector<std::thread> threads;
  for (int count = 1; count <= kThreads; ++count) {
    threads.emplace_back([&, count] {
      const auto own = static_cast<std::size_t>(count - 1);
      try {
        const std::vector<std::uint8_t> values = clips(count, 23, 31);
        std::vector<std::unique_ptr<Classifier>> engines;
        for (int i = 0; i < kEngines; ++i) {
          engines.push_back(std::make_unique<Classifier>(data("model.pt"), on_gpu()));
          for (int call = 0; call < 2 * kSettled; ++call) {
            for (const auto& engine : engines) {
              expect_near(classify(*engine, values, count, 23, 31), expected[own], kTolerance);
            }
          }
        }
      } catch (const std::exception& error) {
        failures[own] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

// Gives the process no more memory of the GPU than it has, until destroyed.
class NoMoreMemory {
 public:
  NoMoreMemory() {
    c10::cuda::CUDACachingAllocator::emptyCache();
    c10::cuda::CUDACachingAllocator::setMemoryFraction(0.0, 0);
  }
  ~NoMoreMemory() { c10::cuda::CUDACachingAllocator::setMemoryFraction(1.0, 0); }
  NoMoreMemory(const NoMoreMemory&) = delete;
  NoMoreMemory& operator=(const NoMoreMemory&) = delete;
};

TEST_F(Cuda, OutOfMemoryIsAnErrorAndTheNextCallWorks) {
  for (const auto& [cpu_file, gpu_file] : pairs("model")) {
    const Classifier cpu(cpu_file), gpu(gpu_file, on_gpu());
    const std::vector<std::uint8_t> small = clips(1, 23, 31), large = clips(2, 600, 800);
    const std::vector<float> expected = classify(cpu, small, 1, 23, 31);
    for (int call = 0; call < kSettled; ++call) classify(gpu, small, 1, 23, 31);
    {
      const NoMoreMemory limit;
      for (int trial = 0; trial < 2; ++trial) {
        std::string message;
        EXPECT_EQ(code_of([&] { classify(gpu, large, 2, 600, 800); }, &message), ErrorCode::kOutOfMemory);
        EXPECT_NE(message.find("cuda:0 is out of memory with 2 x 4 frames of 600 x 800"), std::string::npos)
            << message;
        // What is replayed has its memory.
        expect_near(classify(gpu, small, 1, 23, 31), expected, kTolerance);
      }
    }
    expect_near(classify(gpu, large, 2, 600, 800), classify(cpu, large, 2, 600, 800), kTolerance);
  }
}

// Weights that the GPU has no room for are no sign of a damaged file.
TEST_F(Cuda, OutOfMemoryAtLoad) {
  {
    const NoMoreMemory limit;
    std::string message;
    EXPECT_EQ(code_of([] { Classifier(data("clip.pt"), on_gpu()); }, &message), ErrorCode::kOutOfMemory);
    EXPECT_NE(message.find("out of memory"), std::string::npos) << message;
  }
  Classifier(data("clip.pt"), on_gpu());
}

}  // namespace
