// The ranks of one worker group, host side: start-up, agreement, and the broadcast of batches. The only
// header through which the rest of worker/ sees MPI; it includes none of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bough {

struct RankProgress {
  int rank = 0;
  std::string phase;
  int64_t bytes_done = 0, bytes_total = 0;
};

// Called only from the thread that made it (the main thread of start-up, later the engine thread;
// never two at once).
class MpiGroup {
 public:
  // Initialises MPI when the process was started by mpirun, else makes a group of one rank.
  static std::unique_ptr<MpiGroup> Init(int* argc, char*** argv);
  virtual ~MpiGroup() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // This rank's number among those of its machine: which GPU is its own.
  virtual int local_rank() const = 0;

  // Collective. The first rank's error (lowest rank) on every rank, prefixed with that rank when there
  // are several; OK only when all are OK.
  virtual absl::Status Agree(const absl::Status& mine) = 0;
  // Collective. The smallest of all ranks' values.
  virtual int64_t Min(int64_t mine) = 0;

  // Rank 0 sends, the others receive. A receiver that finds nothing gives its core away: it polls for
  // 50 us, then sleeps in growing steps of at most 1 ms, so that an idle group costs no CPU.
  virtual void Send(std::span<const uint8_t> bytes) = 0;
  virtual std::vector<uint8_t> Receive() = 0;

  // Non-zero ranks post, rank 0 collects what has arrived; never blocks.
  virtual void PostProgress(const RankProgress& progress) = 0;
  virtual std::vector<RankProgress> CollectProgress() = 0;

  virtual void Barrier() = 0;
  // Ends every rank of the group at once with this exit code.
  [[noreturn]] virtual void Abort(int code) = 0;
};

}  // namespace bough
