// Says what a camera sees, as it changes.
#include <sifa/hysteresis.h>
#include <sifa/source.h>
#include <sifa/stream.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::cerr << "usage: webcam MODEL [SOURCE]   (default: /dev/video0)\n";
    return 2;
  }
  try {
    sifa::Stream stream(argv[1]);
    sifa::Hysteresis decision(0.6F, 0.4F);
    sifa::Capture capture(argc == 3 ? argv[2] : "/dev/video0");
    sifa::CapturedFrame frame;
    for (;;) {
      const auto status = capture.read(frame, std::chrono::seconds(1));
      if (status == sifa::Capture::Status::kEnd) break;
      if (status == sifa::Capture::Status::kNothingYet) continue;
      if (frame.begins) stream.reset(), decision.reset();  // the camera was lost and is back
      const auto prediction = stream.push({frame.data.data(), frame.height, frame.width});
      if (!prediction) continue;
      const auto before = decision.decision();
      const auto now = decision.update(prediction->probabilities);
      if (now != before) std::cout << (now ? stream.labels()[*now] : "-") << std::endl;
    }
  } catch (const sifa::Error& error) {
    std::cerr << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}
