// The thread between who annotates frames and the sink that they go to.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sink.h"

namespace sifa {

/// Writes to a sink in a thread of its own, so that an encoder that is slow, or a peer that does not read,
/// need not hold up who reads the source.
class AsyncSink {
 public:
  /// What happens to a frame that comes while two wait for the sink.
  enum class Full {
    kWait,  ///< it waits too: nothing is lost
    kDrop   ///< the oldest one is dropped, and counted
  };

  /// `name` is the sink's in errors. `patience`: how long close() waits for a sink that takes nothing.
  AsyncSink(std::unique_ptr<Sink> sink, std::string name,
            std::chrono::milliseconds patience = std::chrono::seconds(10));
  /// Closes the sink, like close(), if nobody has; its failure is then nobody's to hear of.
  ~AsyncSink();
  AsyncSink(const AsyncSink&) = delete;
  AsyncSink& operator=(const AsyncSink&) = delete;

  /// Queues a frame, and leaves another buffer in it. False when there was no room for it within `timeout`
  /// (kWait). Throws what the sink threw.
  bool write(CapturedFrame& frame, const std::vector<std::string>& lines, Full full,
             std::chrono::milliseconds timeout);

  /// Completes what is queued, and then the sink, which encoders take a while for: six times the patience.
  /// Throws what the sink threw, and Error(kOther) for one that takes nothing: it is left alone, and its
  /// thread with it.
  void close();

  std::int64_t written() const;  ///< frames
  std::int64_t dropped() const;  ///< frames

 private:
  struct State;
  std::shared_ptr<State> state_;  // with the thread
  std::string name_;
  std::chrono::milliseconds patience_;
};

}  // namespace sifa
