// The two thresholds; a probability that is not a number is below both.
#include "sifa/hysteresis.h"

#include <sstream>

#include "sifa/error.h"

namespace sifa {

Hysteresis::Hysteresis(float enter, float leave) : enter_(enter), leave_(leave) {
  if (leave > 0.0F && leave <= enter && enter <= 1.0F) return;
  std::ostringstream message;
  message << "Hysteresis: the thresholds must be 0 < leave <= enter <= 1, got leave " << leave
          << " and enter " << enter;
  throw Error(ErrorCode::kInvalidArgument, message.str());
}

std::optional<std::size_t> Hysteresis::update(const std::vector<float>& probabilities) {
  const bool holds = decision_ && *decision_ < probabilities.size() && probabilities[*decision_] >= leave_;
  if (holds) return decision_;
  decision_.reset();
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    const bool is_enough = probabilities[i] >= enter_;
    if (is_enough && (!decision_ || probabilities[i] > probabilities[*decision_])) decision_ = i;
  }
  return decision_;
}

}  // namespace sifa
