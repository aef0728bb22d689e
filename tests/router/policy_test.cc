#include "router/policy.h"

#include <vector>

#include "gtest/gtest.h"

namespace bough::router {
namespace {

// A group that has fitted its coefficients: 1 ms per prompt token, room for everything.
GroupView Ready() {
  GroupView g;
  g.accepting = true;
  g.prefill_seconds_per_token = 1e-3;
  g.total_blocks = g.free_blocks = 10000;
  return g;
}

struct Case {
  const char* name;
  RouteQuery query;
  std::vector<GroupView> groups;
  int chosen;
};

GroupView With(void (*change)(GroupView&)) {
  GroupView g = Ready();
  change(g);
  return g;
}

const Case kCases[] = {
    {"no group accepts", {640, 1, 100}, {With([](GroupView& g) { g.accepting = false; })}, -1},
    {"the group that holds the prefix wins over an idle one",
     {640, 1, 100},
     {Ready(), With([](GroupView& g) { g.matched_blocks = 9; })},
     1},
    {"a short wait is worth a long prefix",
     {6400, 1, 100},
     {Ready(), With([](GroupView& g) { g.matched_blocks = 99, g.drain_seconds = 3; })},
     1},
    {"a long wait is not",
     {640, 1, 100},
     {Ready(), With([](GroupView& g) { g.matched_blocks = 9, g.drain_seconds = 3; })},
     0},
    {"what was sent but not reported counts as waiting",
     {640, 1, 100},
     {With([](GroupView& g) { g.unreported_seconds = 2; }), Ready()},
     1},
    {"siblings go where their context is being decoded",
     {640, 1, 100},
     {With([](GroupView& g) { g.matched_blocks = 10, g.decode_seconds_per_block = 1e-3; }),
      With([](GroupView& g) {
        g.matched_blocks = g.active_blocks = 10, g.decode_seconds_per_block = 1e-3;
      })},
     1},
    {"a group that knows its decode cost does not lose its context to one that knows nothing yet",
     {640, 1, 1000},
     {With([](GroupView& g) { g.matched_blocks = 9, g.decode_seconds_per_block = 1e-3; }),
      With([](GroupView& g) { g.prefill_seconds_per_token = 0; })},
     0},
    {"an error in one group's decode cost does not outweigh a prefix",
     {640, 1, 1000},
     {With([](GroupView& g) { g.matched_blocks = 9, g.decode_seconds_per_block = 2e-3; }),
      With([](GroupView& g) { g.decode_seconds_per_block = 1e-3; })},
     0},
    {"a group that would have to evict loses to one that need not",
     {640, 1, 100},
     {With([](GroupView& g) { g.free_blocks = 0; }), Ready()},
     1},
    {"equal costs go to the group with fewer blocks in use",
     {640, 1, 100},
     {With([](GroupView& g) { g.free_blocks = 9000; }), Ready()},
     1},
    {"then to the one with fewer requests",
     {640, 1, 100},
     {With([](GroupView& g) { g.requests = 2; }), With([](GroupView& g) { g.requests = 1; })},
     1},
    {"then to the first", {640, 1, 100}, {Ready(), Ready()}, 0},
    {"a group that has not fitted itself is taken for the slowest",
     {640, 1, 100},
     {With([](GroupView& g) { g.prefill_seconds_per_token = 0; }),
      With([](GroupView& g) { g.prefill_seconds_per_token = 1e-4; }),
      With([](GroupView& g) { g.prefill_seconds_per_token = 1e-2; })},
     1},
    {"the prefix counts before any group has fitted itself",
     {640, 1, 100},
     {With([](GroupView& g) { g.prefill_seconds_per_token = 0; }),
      With([](GroupView& g) { g.prefill_seconds_per_token = 0, g.matched_blocks = 9; })},
     1},
    {"a group that does not accept never wins",
     {640, 1, 100},
     {With([](GroupView& g) { g.accepting = false, g.matched_blocks = 10; }), Ready()},
     1},
};

TEST(Policy, ChoosesAsTheTableSays) {
  for (const Case& c : kCases) {
    EXPECT_EQ(PlaceRequest(c.query, c.groups, {}).chosen, c.chosen) << c.name;
  }
}

TEST(Policy, TermsAreInSecondsAndSumToTheTotal) {
  const RouteQuery query{.prompt_tokens = 640, .num_choices = 2, .max_tokens = 128};
  GroupView g = Ready();
  g.matched_blocks = 4;
  g.active_blocks = 2;
  g.drain_seconds = 1.5;
  g.unreported_seconds = 0.5;
  g.decode_seconds_per_block = 1e-5;
  g.free_blocks = 3;
  const Candidate c = PlaceRequest(query, {g}, {}).candidates[0];
  EXPECT_EQ(c.matched_tokens, 256);
  EXPECT_DOUBLE_EQ(c.terms.wait, 2);
  EXPECT_DOUBLE_EQ(c.terms.prefill, 384e-3);
  EXPECT_DOUBLE_EQ(c.terms.externality, 2 * 384e-3);         // lambda = queue / 1 s
  EXPECT_DOUBLE_EQ(c.terms.decode, 64 * 8 * 1e-5);           // half of max_tokens, 10 - 2 blocks
  EXPECT_DOUBLE_EQ(c.terms.eviction, 5 * 64 * 1e-3 * 0.25);  // 6 + 2 blocks needed, 3 free
  EXPECT_DOUBLE_EQ(c.terms.total(), c.terms.wait + c.terms.prefill + c.terms.externality +
                                        c.terms.decode + c.terms.eviction);
}

TEST(Policy, TheLastPromptTokenIsAlwaysComputed) {
  GroupView g = Ready();
  g.matched_blocks = 2;
  const RouteQuery query{.prompt_tokens = 128, .num_choices = 1, .max_tokens = 1};
  EXPECT_EQ(PlaceRequest(query, {g}, {}).candidates[0].matched_tokens, 127);
}

TEST(Policy, SplittingABusyGroupsWorkIsWorthMoreTheLongerItsQueue) {
  GroupView g = Ready();
  double last = 0;
  for (double queue : {0.0, 1.0, 4.0}) {
    g.drain_seconds = queue;
    const double externality = PlaceRequest({640, 1, 1}, {g}, {}).candidates[0].terms.externality;
    EXPECT_GT(externality, last) << queue;
    last = externality;
  }
}

}  // namespace
}  // namespace bough::router
