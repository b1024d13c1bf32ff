// Follows several streams of raw RGB frames, files or pipes, with one model.
//
// Streams that are due together go through the network as one batch. A decision is printed when it changes.
#include <sifa/hysteresis.h>
#include <sifa/stream.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <vector>

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: streams MODEL HEIGHT WIDTH FILE...   (files of RGB bytes, frame after frame)\n";
    return 2;
  }
  try {
    const std::int64_t height = std::atoll(argv[2]), width = std::atoll(argv[3]);
    const std::size_t count = static_cast<std::size_t>(argc - 4);
    sifa::StreamBatch batch(argv[1], count);
    std::vector<std::ifstream> files;
    for (std::size_t i = 0; i < count; ++i) files.emplace_back(argv[4 + i], std::ios::binary);
    std::vector<sifa::Hysteresis> decisions(count, sifa::Hysteresis(0.5F, 0.3F));
    std::vector<char> bytes(static_cast<std::size_t>(height * width * 3));

    for (bool any = true; any;) {
      any = false;
      for (std::size_t i = 0; i < count; ++i) {
        if (!files[i].read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) continue;
        batch.push(i, {reinterpret_cast<const std::uint8_t*>(bytes.data()), height, width});
        any = true;
      }
      const auto predictions = batch.run();
      for (std::size_t i = 0; i < count; ++i) {
        if (!predictions[i]) continue;
        const auto before = decisions[i].decision();
        const auto now = decisions[i].update(predictions[i]->probabilities);
        if (now == before) continue;
        std::cout << "stream " << i << ", frame " << predictions[i]->frame << ": "
                  << (now ? batch.labels()[*now] : "nothing") << "\n";
      }
    }
  } catch (const sifa::Error& error) {
    std::cerr << error.what() << "\n";
    return static_cast<int>(error.code());
  }
}
