// Durations, and percentiles of them.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

inline double milliseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

/// Percentiles of any number of durations (milliseconds) in bounded memory: buckets that are 2 % wide.
class Durations {
 public:
  void add(double duration) {
    const double position = std::log(std::max(duration, kSmallest) / kSmallest) / std::log(kRatio);
    ++counts_[static_cast<std::size_t>(std::min(position, counts_.size() - 1.0))];
    ++total_;
  }

  nlohmann::ordered_json percentiles() const {
    nlohmann::ordered_json result;
    for (const int percent : {50, 95, 99})
      result["p" + std::to_string(percent)] = percentile(percent / 100.0);
    return result;
  }

 private:
  static constexpr double kSmallest = 0.001;  // milliseconds
  static constexpr double kRatio = 1.02;

  nlohmann::ordered_json percentile(double share) const {
    if (total_ == 0) return nullptr;
    std::int64_t below = 0;
    std::size_t i = 0;
    while (i + 1 < counts_.size() &&
           static_cast<double>(below += counts_[i]) < share * static_cast<double>(total_))
      ++i;
    return kSmallest * std::pow(kRatio, static_cast<double>(i) + 0.5);
  }

  std::array<std::int64_t, 1100> counts_{};  // up to three quarters of an hour
  std::int64_t total_ = 0;
};
