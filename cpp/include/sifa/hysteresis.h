// A decision that does not flicker: hysteresis with two thresholds over a stream's probabilities.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "sifa/export.h"

namespace sifa {

/// Turns a sequence of probabilities into a decision. A class is decided for when its probability is the
/// highest and at least `enter`; the decision holds, whatever other classes do, until the probability of this
/// class falls below `leave`.
class SIFA_API Hysteresis {
 public:
  /// Throws Error(kInvalidArgument) unless 0 < leave <= enter <= 1.
  Hysteresis(float enter, float leave);

  /// Takes the next probabilities, one per class, and returns the index of the class decided for, or nothing.
  /// A probability that is not a number decides for nothing.
  std::optional<std::size_t> update(const std::vector<float>& probabilities);

  std::optional<std::size_t> decision() const { return decision_; }

  void reset() { decision_.reset(); }

 private:
  float enter_;
  float leave_;
  std::optional<std::size_t> decision_;
};

}  // namespace sifa
