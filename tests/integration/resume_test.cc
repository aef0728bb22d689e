#include "gtest/gtest.h"
#include "tests/integration/serving_system.h"

namespace bough::integration {
namespace {

constexpr int kNumTokens = 200;

// Reads a stream; after `kill_after` tokens, kills the group that makes them.
Streamed StreamAndKill(ServingSystem& system, const v1::GenerateRequest& request, int kill_after) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(90)));
  v1::GenerateStreamRequest stream_request;
  *stream_request.mutable_request() = request;
  const auto reader = system.generation().GenerateStream(&context, stream_request);
  Streamed s;
  s.texts.resize(1);
  s.token_ids.resize(1);
  v1::GenerateStreamResponse event;
  bool killed = false;
  while (reader->Read(&event)) {
    if (event.has_start()) s.start = event.start();
    if (event.has_end()) s.end = event.end();
    if (!event.has_delta()) continue;
    s.texts[0] += event.delta().text();
    for (const int32_t id : event.delta().token_ids()) s.token_ids[0].push_back(id);
    if (!killed && static_cast<int>(s.token_ids[0].size()) >= kill_after) {
      system.KillGroup(s.start.group());
      killed = true;
    }
  }
  s.status = reader->Finish();
  EXPECT_TRUE(killed);
  return s;
}

TEST(Resume, AStreamOutlivesItsGroupWithTheSameGreedyTokens) {
  ServingSystem system;
  const v1::GenerateRequest request = GreedyRequest(Prompt(100, 1), kNumTokens);
  const Streamed undisturbed = system.Stream(request);
  ASSERT_TRUE(undisturbed.status.ok()) << undisturbed.status.error_message();
  ASSERT_EQ(undisturbed.token_ids[0].size(), static_cast<size_t>(kNumTokens));

  const Streamed resumed = StreamAndKill(system, request, 10);
  ASSERT_TRUE(resumed.status.ok()) << resumed.status.error_message();
  EXPECT_EQ(resumed.token_ids[0], undisturbed.token_ids[0]);
  EXPECT_EQ(resumed.texts[0], undisturbed.texts[0]);
  EXPECT_EQ(resumed.end.usage().completion_tokens(), kNumTokens);

  // The kill must have hit a stream in progress, or nothing was resumed.
  EXPECT_NE(system.ScrapeRouter().find("\nbough_resumes_total 1"), std::string::npos);
  EXPECT_NE(system.Group(resumed.start.group()).state(), v1::GROUP_STATE_READY);
  EXPECT_TRUE(system.Stream(GreedyRequest(Prompt(20, 2), 4)).status.ok());
  EXPECT_TRUE(system.AllBlocksComeBack());
}

}  // namespace
}  // namespace bough::integration
