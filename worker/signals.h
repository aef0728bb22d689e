// SIGTERM, SIGINT and SIGUSR1 ask a group to stop, and rank 0 decides for all. mpirun passes SIGUSR1 on
// to every rank, which makes it the supervisor's way to rank 0 (tools/launch_group.sh). A SIGTERM that
// mpirun itself sends is no question: a rank died, and the group is over.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace bough {

// Before any thread starts: from here on the three signals wait for StopSignals.
void BlockStopSignals();

// Of a process that mpirun started: it dies with mpirun, and on ranks > 0 with mpirun's SIGTERM. Other
// processes are left as they are.
void FollowMpirun(int rank);

// Rank 0: calls `on_signal(n)` for the n-th of the signals, from 1, on a thread of its own.
class StopSignals {
 public:
  explicit StopSignals(std::function<void(int)> on_signal);
  ~StopSignals();

 private:
  void Wait();

  const std::function<void(int)> on_signal_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

}  // namespace bough
