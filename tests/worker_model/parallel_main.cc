#include "tests/worker_model/parallel_main.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "common/check.h"
#include "kernels/cpu/parallel.h"

namespace bough::testing {
namespace {

MpiGroup* the_group = nullptr;
constexpr char kStop[] = "stop";

}  // namespace

MpiGroup* Group() {
  CHECK(the_group != nullptr);
  return the_group;
}

void StartFollowers(const std::string& words) {
  Group()->Send({reinterpret_cast<const uint8_t*>(words.data()), words.size()});
}

int RunParallelTests(int argc, char** argv, const std::function<void(const std::string&)>& follow) {
  const std::unique_ptr<MpiGroup> group = MpiGroup::Init(&argc, &argv);
  the_group = group.get();
  // The ranks share the cores, as in worker/main.cc.
  cpu::SetNumThreads(std::max(1, cpu::NumThreads() / group->size()));
  int exit_code = 0;
  if (group->rank() == 0) {
    ::testing::InitGoogleTest(&argc, argv);
    exit_code = RUN_ALL_TESTS();
    if (group->size() > 1) StartFollowers(kStop);
  } else {
    for (;;) {
      const std::vector<uint8_t> bytes = group->Receive();
      const std::string words(bytes.begin(), bytes.end());
      if (words == kStop) break;
      follow(words);
    }
  }
  return exit_code;
}

}  // namespace bough::testing
