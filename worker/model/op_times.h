// Where a step's time goes: a table of ops that puts a time stamp behind every op of a device.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/ops.h"
#include "worker/model/device.h"

namespace bough {

// Launches of one name in one step. Products are told apart by shape: "GroupedGemm/n=28672/k=4096".
struct OpTime {
  std::string name;
  double ms = 0;
  int num_calls = 0;
  int m = 0, n = 0, k = 0;      // of a product; m = rows, padding included
  int num_experts = 0;          // of a grouped product
  DType w_dtype = DType::kF32;  // of a product
};

// A stamp behind each op costs the device about a microsecond and keeps the next op from starting
// early, so sums exceed the time of a step without stamps. What is no op (collectives) counts to
// the op behind it.
// Ops are plain functions, so the table finds its OpTimes in a variable of the file: one exists at a
// time. Called only from the thread that runs batches.
class OpTimes {
 public:
  // Steps of these numbers of tokens are timed, padding included; others run as without it.
  explicit OpTimes(std::set<int> num_tokens);
  ~OpTimes();
  OpTimes(const OpTimes&) = delete;
  OpTimes& operator=(const OpTimes&) = delete;

  // Times the ops of this device from now on. Outlives it.
  void Attach(Device* device);

  // The last step of so many tokens: a graph's last launch where one was recorded, else the last one
  // launched op by op. In order of first use; empty when there was none.
  // REQUIRES: the device is idle; a recorded graph was launched.
  std::vector<OpTime> LastStep(int num_tokens) const;

 private:
  struct Call {
    OpTime op;
    std::unique_ptr<TimeStamp> end;
  };
  struct Step {
    std::unique_ptr<TimeStamp> begin;
    std::vector<Call> calls;
    size_t num_calls = 0;  // of the last run; stamps are kept for the next
  };

  template <typename Params, Ops::Op<Params> Ops::*member>
  static void Run(const Params& params, Stream stream);
  void BeginStep(int num_tokens);
  void EndOp(const OpTime& op);

  const std::set<int> num_tokens_;
  Device* device_ = nullptr;
  const Ops* ops_ = nullptr;  // the device's own
  Ops timed_ops_;
  std::map<int, Step> launched_, recorded_;  // by number of tokens
  Step* step_ = nullptr;                     // that ops belong to now; nullptr: not timed
};

}  // namespace bough
