#include "router/policy.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "gtest/gtest.h"

static int64_t g_num_allocations = 0;

// Not inlined: GCC takes an inlined pair for a mismatch.
[[gnu::noinline]] void* operator new(size_t size) {
  ++g_num_allocations;
  void* p = std::malloc(size);
  if (p == nullptr) std::abort();
  return p;
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }

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
  PolicyCoefficients coefficients;
  coefficients.lambda_load = 2;
  coefficients.lambda_wait = 0.5;
  coefficients.decode_weight = 0.5;
  coefficients.next_turn_probability = 0.5;
  coefficients.next_turn_seconds = 64;
  GroupView g = Ready();
  g.matched_blocks = 4;
  g.active_blocks = 2;
  g.drain_seconds = 1.5;
  g.unreported_seconds = 0.5;
  g.decode_seconds_per_block = 1e-5;
  g.busy_share = 0.5;
  g.total_blocks = 500;
  g.free_blocks = 3;
  g.rows = 6;
  g.active_unique_blocks = 20;
  const Candidate c = PlaceRequest(query, {&g, 1}, coefficients).candidates[0];
  EXPECT_EQ(c.matched_tokens, 256);
  EXPECT_DOUBLE_EQ(c.terms.wait, 2);
  EXPECT_DOUBLE_EQ(c.terms.prefill, 384e-3);
  EXPECT_DOUBLE_EQ(c.terms.externality, 3 * 384e-3);  // lambda = 2 * 0.5 / 0.5 + 0.5 * 2 s
  // 64 steps of 8 rows that read 20 blocks, 10 - 2 of the context and two half answers, less those of
  // the 6 rows of before.
  EXPECT_DOUBLE_EQ(c.terms.decode, 0.5 * 64 * (8 * (8e-3 + 29e-5) - 6 * (6e-3 + 20e-5)));
  EXPECT_DOUBLE_EQ(c.terms.eviction, 5 * 64 * 1e-3 * 0.25);  // 6 + 2 blocks needed, 3 free
  // A cache of 32 s of work that half of the time is worked at: a block stays for 64 s.
  EXPECT_DOUBLE_EQ(c.terms.next_turn, -0.5 * 0.64 * std::exp(-1));
  EXPECT_DOUBLE_EQ(c.terms.total(), c.terms.wait + c.terms.prefill + c.terms.externality +
                                        c.terms.decode + c.terms.eviction + c.terms.next_turn);
}

TEST(Policy, TheLastPromptTokenIsAlwaysComputed) {
  GroupView g = Ready();
  g.matched_blocks = 2;
  const RouteQuery query{.prompt_tokens = 128, .num_choices = 1, .max_tokens = 1};
  EXPECT_EQ(PlaceRequest(query, {&g, 1}, {}).candidates[0].matched_tokens, 127);
}

TEST(Policy, WorkThatCouldBeSkippedIsTheDearerTheHigherTheLoad) {
  GroupView g = Ready();
  auto externality = [&g] {
    return PlaceRequest({640, 1, 1}, {&g, 1}, {}).candidates[0].terms.externality;
  };
  double last = 0;
  for (double rho : {0.0, 0.5, 0.8}) {
    g.busy_share = rho;
    EXPECT_GT(externality(), last) << rho;
    last = externality();
  }
  g.drain_seconds = 4;  // a burst that the share of busy time does not show yet
  EXPECT_GT(externality(), last);
  g.busy_share = 1;
  EXPECT_DOUBLE_EQ(externality(), PolicyCoefficients().lambda_max * 0.64);
}

// A prefix of 6,400 tokens is worth 6.4 s of prefill; group 0 holds it.
TEST(Policy, AHotPrefixIsCopiedWhenWaitingForItCostsMoreThanItsPrefillWithWhatThatDelays) {
  PolicyCoefficients coefficients;
  coefficients.lambda_load = 0;
  coefficients.lambda_wait = 0;
  coefficients.lambda_min = 0.5;
  std::vector<GroupView> groups = {Ready(), Ready()};
  groups[0].matched_blocks = 100;
  for (double wait : {6.0, 9.0}) {  // between them: 1.5 * 6.4 s would be 9.6 s less the new tokens
    groups[0].drain_seconds = wait;
    EXPECT_EQ(PlaceRequest({6464, 1, 1}, groups, coefficients).chosen, 0) << wait;
  }
  groups[0].drain_seconds = 10;
  EXPECT_EQ(PlaceRequest({6464, 1, 1}, groups, coefficients).chosen, 1);
}

TEST(Policy, AContextBeingDecodedKeepsItsSiblingsTheMoreTheMoreRowsShareTheStep) {
  std::vector<GroupView> groups = {Ready(), Ready()};
  for (GroupView& g : groups) {
    g.matched_blocks = 100;
    g.decode_seconds_per_block = 1e-6;
  }
  groups[1].active_blocks = 100;
  groups[1].drain_seconds = 0.2;
  const RouteQuery query{.prompt_tokens = 6464, .num_choices = 1, .expected_answer_tokens = 500};
  groups[0].rows = groups[1].rows = 1;
  EXPECT_EQ(PlaceRequest(query, groups, {}).chosen, 0);  // 0.05 s of reading is not worth 0.2 s
  groups[0].rows = groups[1].rows = 30;
  EXPECT_EQ(PlaceRequest(query, groups, {}).chosen, 1);
}

TEST(Policy, AGroupThatDecodesManyRowsIsDearer) {
  std::vector<GroupView> groups = {Ready(), Ready()};
  groups[0].rows = 30;
  EXPECT_EQ(PlaceRequest({640, 1, 500}, groups, {}).chosen, 1);
  groups[1].rows = 60;
  EXPECT_EQ(PlaceRequest({640, 1, 500}, groups, {}).chosen, 0);
}

TEST(Policy, SamplesOfOnePromptCountAsSoManyRowsThatReadItOnce) {
  GroupView g = Ready();
  g.decode_seconds_per_block = 1e-3;
  const RouteQuery query{.prompt_tokens = 640, .num_choices = 4, .expected_answer_tokens = 128};
  const Candidate c = PlaceRequest(query, {&g, 1}, {}).candidates[0];
  // Four rows, the prompt's 10 blocks and half of each answer's 2.
  EXPECT_DOUBLE_EQ(c.terms.decode,
                   PolicyCoefficients().decode_weight * 128 * 4 * (4e-3 + (10 + 4 * 1) * 1e-3));
}

TEST(Policy, TheRoutersFitReplacesTheGroupsOwn) {
  GroupView g = Ready();
  g.matched_blocks = 5;
  g.rows = 3;
  g.prefill = {.per_prompt = 0.01, .per_token = 1e-4, .per_pair = 1e-6, .per_token_row = 1e-5};
  const Candidate c = PlaceRequest({640, 1, 1}, {&g, 1}, {}).candidates[0];
  EXPECT_DOUBLE_EQ(c.terms.prefill, 0.01 + 320 * (1e-4 + 1e-6 * (320 + 160) + 1e-5 * 3));
}

TEST(Policy, AConversationGoesWhereItsBlocksWillStay) {
  std::vector<GroupView> groups = {Ready(), Ready()};
  groups[0].total_blocks = groups[0].free_blocks = 200;
  EXPECT_EQ(PlaceRequest({6400, 1, 1}, groups, {}).chosen, 1);
  groups[1].busy_share = 0.99;  // its cache turns over as fast as it can
  groups[1].total_blocks = groups[1].free_blocks = 2000;
  groups[0].total_blocks = groups[0].free_blocks = 10000;
  EXPECT_EQ(PlaceRequest({6400, 1, 1}, groups, {}).chosen, 0);
}

TEST(Policy, AGroupThatWouldBeLateIsChosenOnlyIfAllWould) {
  std::vector<GroupView> groups = {Ready(), Ready()};
  groups[0].matched_blocks = 99;
  groups[0].drain_seconds = 3;
  RouteQuery query{.prompt_tokens = 6400, .num_choices = 1, .max_tokens = 1};
  EXPECT_EQ(PlaceRequest(query, groups, {}).chosen, 0);
  groups[0].drain_seconds = 6.45;
  query.seconds_left = 6.45;  // 6.514 s there, 6.4 s at the other
  EXPECT_EQ(PlaceRequest(query, groups, {}).chosen, 1);
  query.seconds_left = 1;
  EXPECT_EQ(PlaceRequest(query, groups, {}).chosen, 0);
}

TEST(Policy, PlacementAllocatesNothing) {
  const std::vector<GroupView> groups(kMaxGroups, Ready());
  const int64_t before = g_num_allocations;
  const int chosen = PlaceRequest({640, 1, 100}, groups, {}).chosen;
  EXPECT_EQ(g_num_allocations, before);
  EXPECT_EQ(chosen, 0);
}

}  // namespace
}  // namespace bough::router
