// Classifies a video, then frames of the program's own making.
#include <sifa/classifier.h>

#include <algorithm>
#include <iostream>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: classify MODEL VIDEO\n";
    return 2;
  }
  try {
    const sifa::Classifier classifier(argv[1]);  // or {argv[1], {"cuda:0"}}

    const sifa::VideoPrediction video = classifier.classify(std::string(argv[2]));
    const auto best = std::max_element(video.probabilities.begin(), video.probabilities.end());
    std::cout << classifier.labels()[best - video.probabilities.begin()] << " " << *best << "\n";

    // Frames from anywhere: RGB bytes, any height and width.
    const std::int64_t length = classifier.metadata().num_frames, height = 240, width = 320;
    const std::vector<std::uint8_t> grey(length * height * width * 3, 128);
    const std::vector<float> probabilities = classifier.classify({grey.data(), 1, length, height, width});
    std::cout << "a grey clip: " << *std::max_element(probabilities.begin(), probabilities.end()) << "\n";
  } catch (const sifa::Error& error) {
    std::cerr << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}
