// What `bough top` shows, as a pure function of two looks at the router.
#pragma once

#include <optional>
#include <string>

#include "bough/v1/admin.pb.h"

namespace bough::client {

// One look.
struct Snapshot {
  double seconds = 0;  // on any monotonic clock
  v1::GetServerInfoResponse info;
  v1::ListGroupsResponse groups;
  v1::GetLoadProgressResponse progress;
};

struct FrameStyle {
  bool color = false;  // terminal escapes stand around states and headings
  int columns = 80;    // what is left of it is the KV bar's
};

// Rates are those between `before` and `now`; "-" without a `before`. Lines end with newlines.
std::string TopFrame(const Snapshot& now, const std::optional<Snapshot>& before, FrameStyle style);

// "g0 rank 1  [#####.....]  52% weights 20.1 MB / 38.4 MB", one line per rank of the groups that
// are still loading.
std::string LoadLines(const v1::GetLoadProgressResponse& progress);

// "1/2 groups ready  g1 [#####.....]  52% of weights", or "g1 connecting: connection refused": one
// line that names every group that is not ready.
std::string ReadyLine(const Snapshot& now);

// All groups that the router knows are ready, and there is one.
bool AllReady(const v1::ListGroupsResponse& groups);

}  // namespace bough::client
