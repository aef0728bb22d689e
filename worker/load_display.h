// How the model load looks on rank 0's stderr: a bar on a terminal, a log line every two seconds
// elsewhere; nothing at all for a load of less than two seconds.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "worker/comm/mpi_group.h"

namespace bough {

// "loading g0  12 s  [#####     ]  52%  rank 0  61%  rank 1  43%"
std::string ProgressBar(const std::string& group, const std::vector<RankProgress>& ranks,
                        absl::Duration elapsed);

// Called only from the loading thread.
class LoadDisplay {
 public:
  LoadDisplay(std::string group, bool is_terminal, absl::Time start)
      : group_(std::move(group)), is_terminal_(is_terminal), start_(start), next_(start + kQuiet) {}

  void Update(const RankProgress& progress, absl::Time now);
  // Leaves the line of the bar.
  void End();

  // The last word of every rank, by rank.
  const std::vector<RankProgress>& ranks() const { return ranks_; }

 private:
  static constexpr absl::Duration kQuiet = absl::Seconds(2);

  const std::string group_;
  const bool is_terminal_;
  const absl::Time start_;
  absl::Time next_;  // next time that something is shown
  bool bar_shown_ = false;
  std::vector<RankProgress> ranks_;
};

}  // namespace bough
