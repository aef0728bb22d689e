#include <cmath>
#include <set>

#include "client/bench_report.h"
#include "client/request_record.h"
#include "client/statistics.h"
#include "client/workload.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace bough::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Percentile, InterpolatesBetweenNeighbours) {
  const std::vector<double> sorted = {10, 20, 30, 40};
  EXPECT_EQ(Percentile(sorted, 0), 10);
  EXPECT_EQ(Percentile(sorted, 1), 40);
  EXPECT_DOUBLE_EQ(Percentile(sorted, 0.5), 25);
  EXPECT_DOUBLE_EQ(Percentile(sorted, 0.9), 37);
  EXPECT_EQ(Percentile({7}, 0.99), 7);
  EXPECT_EQ(Percentile({}, 0.5), 0);
}

TEST(Describe, DoesNotNeedSortedInput) {
  const Distribution d = Describe({40, 10, 30, 20});
  EXPECT_DOUBLE_EQ(d.mean, 25);
  EXPECT_DOUBLE_EQ(d.p50, 25);
  EXPECT_DOUBLE_EQ(d.std, std::sqrt(125));
}

v1::Model TestModel() {
  v1::Model model;
  model.set_vocab_size(100);
  model.set_max_model_len(2048);
  model.set_max_n(64);
  model.set_bos_token_id(1);
  model.set_eos_token_id(2);
  return model;
}

std::string Serialized(const std::vector<v1::GenerateRequest>& requests) {
  std::string all;
  for (const v1::GenerateRequest& request : requests) all += request.SerializeAsString();
  return all;
}

TEST(Workload, IsTheSameForTheSameSeed) {
  WorkloadConfig config;
  const std::string first = Serialized(MakeRequests(config, TestModel()));
  EXPECT_EQ(Serialized(MakeRequests(config, TestModel())), first);
  config.seed = 1;
  EXPECT_NE(Serialized(MakeRequests(config, TestModel())), first);
}

TEST(Workload, RandomPromptsHaveTheirLengthAndNoSpecialTokenButBos) {
  WorkloadConfig config;
  config.num_requests = 20;
  config.input_len = 50;
  for (const v1::GenerateRequest& request : MakeRequests(config, TestModel())) {
    const auto& ids = request.token_ids().ids();
    ASSERT_EQ(ids.size(), 50);
    EXPECT_EQ(ids[0], 1);
    for (int i = 1; i < ids.size(); ++i) {
      EXPECT_TRUE(ids[i] == 0 || (ids[i] > 2 && ids[i] < 100)) << ids[i];
    }
    EXPECT_TRUE(request.stop().ignore_eos());
    EXPECT_EQ(request.stop().max_tokens(), config.output_len);
  }
}

TEST(Workload, SharedPrefixesAreFewAndSuffixesFresh) {
  WorkloadConfig config;
  config.num_requests = 40;
  config.num_prefixes = 3;
  config.prefix_len = 64;
  config.input_len = 16;
  std::set<std::vector<int32_t>> prefixes, suffixes;
  for (const v1::GenerateRequest& request : MakeRequests(config, TestModel())) {
    const auto& ids = request.token_ids().ids();
    ASSERT_EQ(ids.size(), 80);
    prefixes.insert({ids.begin(), ids.begin() + 64});
    suffixes.insert({ids.begin() + 64, ids.end()});
  }
  EXPECT_EQ(prefixes.size(), 3u);
  EXPECT_EQ(suffixes.size(), 40u);
}

TEST(Workload, IsRefusedWhenTheModelCannotServeIt) {
  WorkloadConfig config;
  EXPECT_TRUE(Validate(config, TestModel()).ok());
  config.input_len = 2000;
  EXPECT_THAT(std::string(Validate(config, TestModel()).message()),
              HasSubstr("must fit the context of 2048 tokens"));
  config = {};
  config.output_len = 0;
  EXPECT_EQ(Validate(config, TestModel()).message(), "--output-len must be at least 1, is 0");
  config = {};
  config.num_prefixes = 1;
  config.prefix_len = config.input_len = 2'000'000'000;
  EXPECT_FALSE(Validate(config, TestModel()).ok());
  config = {};
  config.n = 65;
  EXPECT_EQ(Validate(config, TestModel()).message(), "--n must be at most 64, is 65");
  config = {};
  config.num_prefixes = 4;
  EXPECT_EQ(Validate(config, TestModel()).message(),
            "--num-prefixes and --prefix-len must both be 0 or both at least 1, are 4 and 0");
}

TEST(PoissonArrivals, AscendAtTheAskedRate) {
  const std::vector<double> arrivals = PoissonArrivals(50, 20'000, 7);
  EXPECT_TRUE(std::is_sorted(arrivals.begin(), arrivals.end()));
  EXPECT_GT(arrivals.front(), 0);
  // 20,000 gaps: the mean's standard error is 0.7 %.
  EXPECT_NEAR(arrivals.back(), 400, 400 * 0.03);
  EXPECT_EQ(PoissonArrivals(50, 20'000, 7), arrivals);
}

v1::GenerateStreamResponse DeltaOf(int index, int num_tokens) {
  v1::GenerateStreamResponse event;
  event.mutable_delta()->set_index(index);
  for (int i = 0; i < num_tokens; ++i) event.mutable_delta()->add_token_ids(5);
  return event;
}

TEST(RequestTimer, MeasuresGapsPerChoice) {
  RequestTimer timer(10);
  timer.Observe(DeltaOf(0, 1), 10.5);
  timer.Observe(DeltaOf(1, 1), 10.75);
  timer.Observe(DeltaOf(0, 1), 11.0);
  timer.Observe(DeltaOf(0, 2), 12.0);
  const RequestRecord record = timer.Finish(grpc::StatusCode::OK, 13);
  EXPECT_DOUBLE_EQ(record.ttft, 0.5);
  EXPECT_DOUBLE_EQ(record.e2e, 3);
  EXPECT_THAT(record.itl, ElementsAre(0.5, 1.0));
  EXPECT_THAT(record.tpot, ElementsAre(0.5));  // choice 0: 1.5 s over 3 tokens; choice 1 has one
  EXPECT_EQ(record.output_tokens, 5);
}

TEST(RequestTimer, TakesTokenCountsFromTheServersUsage) {
  RequestTimer timer(0);
  timer.Observe(DeltaOf(0, 1), 1);
  v1::GenerateStreamResponse end;
  end.mutable_end()->mutable_usage()->set_prompt_tokens(100);
  end.mutable_end()->mutable_usage()->set_cached_prompt_tokens(64);
  end.mutable_end()->mutable_usage()->set_completion_tokens(2);
  timer.Observe(end, 2);
  const RequestRecord record = timer.Finish(grpc::StatusCode::OK, 2);
  EXPECT_EQ(record.prompt_tokens, 100);
  EXPECT_EQ(record.cached_tokens, 64);
  EXPECT_EQ(record.output_tokens, 2);
}

LoadResult TwoGoodOneBad() {
  LoadResult result;
  result.seconds = 2;
  RequestRecord good;
  good.code = grpc::StatusCode::OK;
  good.ttft = 0.1;
  good.e2e = 0.5;
  good.itl = {0.01, 0.03};
  good.tpot = {0.02};
  good.prompt_tokens = 100;
  good.cached_tokens = 50;
  good.output_tokens = 3;
  RequestRecord bad;
  bad.code = grpc::StatusCode::UNAVAILABLE;
  bad.e2e = 99;
  result.records = {good, bad, good};
  return result;
}

TEST(Summarize, LeavesFailedRequestsOutOfTheDistributions) {
  const BenchFigures f = Summarize(TwoGoodOneBad());
  EXPECT_EQ(f.completed, 2);
  EXPECT_EQ(f.failed, 1);
  EXPECT_EQ(f.errors.at("UNAVAILABLE"), 1);
  EXPECT_DOUBLE_EQ(f.e2e.p99, 500);
  EXPECT_DOUBLE_EQ(f.itl.mean, 20);
  EXPECT_DOUBLE_EQ(f.request_throughput, 1);
  EXPECT_DOUBLE_EQ(f.output_throughput, 3);
  EXPECT_DOUBLE_EQ(f.total_token_throughput, 103);
  EXPECT_DOUBLE_EQ(f.cached_ratio(), 0.5);
}

TEST(BenchJson, HasVllmsKeyNames) {
  const auto json = BenchJson(Summarize(TwoGoodOneBad()), {});
  for (const char* key :
       {"duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "output_throughput", "total_token_throughput", "mean_ttft_ms", "median_ttft_ms",
        "std_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms",
        "mean_e2el_ms", "p99_e2el_ms"}) {
    ASSERT_TRUE(json.contains(key)) << key;
    EXPECT_TRUE(json[key].is_number()) << key;
  }
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_EQ(json["errors"]["UNAVAILABLE"], 1);
  EXPECT_FALSE(json.contains("scenario"));
}

TEST(BenchJson, AddsTheResultFormatForAScenario) {
  BenchContext context;
  context.scenario = "smoke";
  context.device = "cpu";
  context.git = "abc";
  context.date = "2026-01-01T00:00:00Z";
  context.ceilings = {{"copy_gb_per_s", 10}};
  context.floors = {{"ttft_p50", 25}};
  const auto json = BenchJson(Summarize(TwoGoodOneBad()), context);
  EXPECT_EQ(json["scenario"], "smoke");
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_EQ(json["git"], "abc");
  EXPECT_EQ(json["ceilings"]["copy_gb_per_s"], 10);
  bool seen = false;
  for (const auto& c : json["cases"]) {
    ASSERT_TRUE(c.contains("name") && c.contains("value") && c.contains("unit"));
    if (c["name"] == "ttft_p50") {
      seen = true;
      EXPECT_DOUBLE_EQ(c["value"], 100);
      EXPECT_DOUBLE_EQ(c["ratio"], 4);
    } else {
      EXPECT_TRUE(c["floor"].is_null() && c["ratio"].is_null()) << c;
    }
  }
  EXPECT_TRUE(seen);
}

TEST(BenchTable, ShowsDistributionsAndErrors) {
  const std::string table = BenchTable(Summarize(TwoGoodOneBad()));
  EXPECT_THAT(table, HasSubstr("2 ok, 1 failed in 2.00 s"));
  EXPECT_THAT(table, HasSubstr("50.0% cached"));
  EXPECT_THAT(table, HasSubstr("errors      1 UNAVAILABLE"));
  EXPECT_THAT(table, HasSubstr("ttft         100.00     100.00"));
}

}  // namespace
}  // namespace bough::client
