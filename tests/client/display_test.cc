#include <sstream>

#include "client/bench_report.h"
#include "client/format.h"
#include "client/progress.h"
#include "client/route_table.h"
#include "client/top_frame.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bough::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(FormatSeconds, GrowsCoarserWithLength) {
  EXPECT_EQ(FormatSeconds(0.42), "0.4s");
  EXPECT_EQ(FormatSeconds(12.3), "12s");
  EXPECT_EQ(FormatSeconds(59.7), "1m00s");
  EXPECT_EQ(FormatSeconds(185), "3m05s");
  EXPECT_EQ(FormatSeconds(7620), "2h07m");
}

TEST(FormatBytes, UsesPowersOfAThousand) {
  EXPECT_EQ(FormatBytes(812), "812 B");
  EXPECT_EQ(FormatBytes(40'200'000), "40.2 MB");
  EXPECT_EQ(FormatBytes(999'999), "1.0 MB");
  EXPECT_EQ(FormatBytes(93'000'000'000), "93.0 GB");
}

TEST(Bar, FillsItsCellsAndClamps) {
  EXPECT_EQ(Bar(0, 4), "[....]");
  EXPECT_EQ(Bar(0.5, 4), "[##..]");
  EXPECT_EQ(Bar(2, 4), "[####]");
  EXPECT_EQ(Bar(-1, 4), "[....]");
  EXPECT_EQ(Bar(0.25, 0.5, 4), "[#::.]");
  EXPECT_EQ(Bar(0.75, 0.75, 4), "[###:]");
  EXPECT_EQ(Bar(0.0 / 0.0, 4), "[....]");
}

TEST(Clip, CountsCharactersNotBytesOrEscapes) {
  EXPECT_EQ(Clip("abcdef", 3), "abc");
  EXPECT_EQ(Clip("ab", 3), "ab");
  EXPECT_EQ(Clip("äöü", 2), "äö");
  EXPECT_EQ(Clip("\033[1mabc\033[0m", 2), "\033[1mab\033[0m");
}

TEST(ProgressPrinter, WritesPlainLinesEveryTwoSeconds) {
  std::ostringstream out;
  ProgressPrinter printer(out, /*tty=*/false, 80);
  for (double seconds : {0.1, 1.0, 2.0, 2.5, 3.9, 4.1}) {
    printer.Show(seconds, absl::StrCat("at ", seconds));
  }
  printer.Finish("end");
  EXPECT_EQ(out.str(), "at 2\nat 4.1\nend\n");
}

TEST(ProgressPrinter, RewritesOneLineOnATerminal) {
  std::ostringstream out;
  ProgressPrinter printer(out, /*tty=*/true, 6);
  printer.Show(0.2, "one");
  printer.Show(0.25, "too soon");
  printer.Finish("last line");
  EXPECT_EQ(out.str(), "\rone\033[K\rlast \033[K\n");
}

TEST(BenchProgressLine, HasCountsRatesAndAnEstimate) {
  LoadProgress p;
  p.finished = 25;
  p.failed = 2;
  p.in_flight = 16;
  p.total = 100;
  p.output_tokens = 1000;
  p.seconds = 5;
  EXPECT_EQ(BenchProgressLine(p),
            "[######..................] 25/100  5.0 req/s  200 tok/s  16 in flight  2 failed  "
            "eta 15s");
}

TEST(RouteTable, OrdersTermsAndGroupsAndSaysWhyAGroupTakesNone) {
  v1::RouteCandidate a, b, c;
  a.set_group("g0");
  a.set_accepting(true);
  (*a.mutable_terms())["novel"] = 1;
  a.set_total_seconds(1);
  b.set_group("g1");
  b.set_accepting(true);
  b.set_in_sync(true);
  b.set_matched_tokens(128);
  b.set_chosen(true);
  (*b.mutable_terms())["prefill"] = 0.25;
  (*b.mutable_terms())["wait"] = 0.5;
  b.set_total_seconds(0.75);
  c.set_group("g2");
  c.set_why_not("draining");
  EXPECT_EQ(RouteTable({c, a, b}),
            "ms  group  matched      wait   prefill     novel    = total\n"
            " *  g1         128   500.000   250.000     0.000    750.000\n"
            "    g0           0     0.000     0.000  1000.000   1000.000"
            "  its cache is not in sync yet\n"
            " -  g2           0  draining\n");
}

v1::Group TestGroup(const std::string& name) {
  v1::Group group;
  group.set_name(name);
  group.set_state(v1::GROUP_STATE_READY);
  group.set_tp_size(2);
  group.set_ep_size(1);
  group.set_device("cpu");
  group.set_requests_running(3);
  group.set_requests_waiting(1);
  group.set_total_blocks(100);
  group.set_free_blocks(50);
  group.set_cached_blocks(30);
  group.set_drain_seconds(0.25);
  group.set_prompt_tokens(1000);
  group.set_cached_prompt_tokens(640);
  group.set_generated_tokens(500);
  return group;
}

Snapshot TestSnapshot() {
  Snapshot s;
  s.seconds = 10;
  s.info.set_version("0.1.0");
  s.info.set_model("demo");
  s.info.set_ready_groups(1);
  s.info.set_requests_in_flight(4);
  s.info.set_uptime_seconds(3725);
  *s.groups.add_groups() = TestGroup("g0");
  return s;
}

TEST(TopFrame, ShowsOneLinePerGroupAndTotals) {
  EXPECT_EQ(TopFrame(TestSnapshot(), std::nullopt, {}),
            "bough 0.1.0  demo  1/1 groups ready  4 requests in flight  up 1h02m\n"
            "\n"
            "GROUP STATE      LAYOUT       RUN WAIT  KV           CACHED  HIT%   TOK/S  DRAIN\n"
            "g0    ready      tp2 ep1 cpu    3    1  [#::..]  20%     30  64.0       -   0.2s\n"
            "total                           3    1  # in use  : cached     30  64.0       -\n");
}

TEST(TopFrame, GivesTheKvBarWhatTheTerminalHasLeft) {
  const std::string frame = TopFrame(TestSnapshot(), std::nullopt, {false, 95});
  EXPECT_THAT(frame, HasSubstr("[####::::::..........]  20%"));
}

TEST(TopFrame, RatesAreThoseBetweenTwoLooks) {
  const Snapshot before = TestSnapshot();
  Snapshot now = TestSnapshot();
  now.seconds = 12;
  now.groups.mutable_groups(0)->set_generated_tokens(700);
  EXPECT_THAT(TopFrame(now, before, {}), HasSubstr("   100.0 "));
}

TEST(TopFrame, HasNoRateForAGroupThatHasRestarted) {
  const Snapshot before = TestSnapshot();
  Snapshot now = TestSnapshot();
  now.seconds = 12;
  now.groups.mutable_groups(0)->set_generated_tokens(10);
  EXPECT_THAT(TopFrame(now, before, {}), HasSubstr("64.0       - "));
}

TEST(TopFrame, ShowsLoadProgressAndErrorsOfLinks) {
  Snapshot s = TestSnapshot();
  s.groups.mutable_groups(0)->set_state(v1::GROUP_STATE_LOADING);
  s.groups.mutable_groups(0)->set_address("127.0.0.1:7000");
  s.groups.mutable_groups(0)->set_last_error("connection refused");
  v1::GroupProgress* group = s.progress.add_groups();
  group->set_group("g0");
  v1::RankProgress* rank = group->add_ranks();
  rank->set_phase("weights");
  rank->set_bytes_done(10'000'000);
  rank->set_bytes_total(40'000'000);
  const std::string frame = TopFrame(s, std::nullopt, {});
  EXPECT_THAT(frame, HasSubstr("g0    loading "));
  EXPECT_THAT(frame, HasSubstr("g0 rank 0  [########......................]  25% weights 10.0 MB / "
                               "40.0 MB\n"));
  EXPECT_THAT(frame, HasSubstr("g0 (127.0.0.1:7000): connection refused\n"));
  EXPECT_THAT(ReadyLine(s), HasSubstr("g0 [#####...............]  25% of weights"));
}

TEST(ReadyLine, SaysWhichGroupIsMissingAndWhy) {
  Snapshot s = TestSnapshot();
  *s.groups.add_groups() = TestGroup("g1");
  EXPECT_EQ(ReadyLine(s), "1/2 groups ready");
  s.groups.mutable_groups(1)->set_state(v1::GROUP_STATE_CONNECTING);
  s.groups.mutable_groups(1)->set_last_error("connection refused");
  EXPECT_EQ(ReadyLine(s), "1/2 groups ready  g1 connecting: connection refused");
}

TEST(TopFrame, HidesGroupsThatHaveLoaded) {
  v1::GetLoadProgressResponse progress;
  progress.add_groups()->add_ranks()->set_phase("ready");
  EXPECT_EQ(LoadLines(progress), "");
}

TEST(TopFrame, PaintsOnlyWhenAsked) {
  EXPECT_THAT(TopFrame(TestSnapshot(), std::nullopt, {}), Not(HasSubstr("\033")));
  EXPECT_THAT(TopFrame(TestSnapshot(), std::nullopt, {true, 80}), HasSubstr("\033[32mready"));
}

TEST(AllReady, NeedsAGroup) {
  v1::ListGroupsResponse groups;
  EXPECT_FALSE(AllReady(groups));
  *groups.add_groups() = TestGroup("g0");
  EXPECT_TRUE(AllReady(groups));
  groups.mutable_groups(0)->set_state(v1::GROUP_STATE_DRAINING);
  EXPECT_FALSE(AllReady(groups));
}

}  // namespace
}  // namespace bough::client
