// What sifa-run prints of probabilities.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

/// The indices of the `count` highest probabilities, the highest first, of equals the first class first.
inline std::vector<std::size_t> top_classes(const std::vector<float>& probabilities, std::size_t count) {
  std::vector<std::size_t> order(probabilities.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return probabilities[a] > probabilities[b]; });
  order.resize(std::min(count, order.size()));
  return order;
}

inline nlohmann::ordered_json as_json(const std::vector<std::size_t>& classes,
                                      const std::vector<float>& probabilities,
                                      const std::vector<std::string>& labels) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const std::size_t index : classes) {
    list.push_back({{"label", labels[index]}, {"index", index}, {"probability", probabilities[index]}});
  }
  return list;
}
