// The group's side of the link: real gRPC, the real engine, a fake model, and a clock that stands.

#include "worker/server.h"

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "tests/worker/engine_harness.h"
#include "tests/worker_serve/fake_router.h"

namespace bough {
namespace {

namespace link = ::bough::group::v1;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Response = link::LinkResponse;
using testing::FakeRouter;
using testing::MakeSubmit;
using testing::Tokens;

constexpr uint64_t kEpoch = 7;

class GroupServerTest : public ::testing::Test {
 protected:
  GroupServerTest() : model_(64, 8, 128), server_(Hello(), [this] { return now_.load(); }) {
    EngineConfig config = testing::TestConfig(64);
    config.clock = [this] { return now_.load(); };
    engine_ = std::make_unique<Engine>(config, &model_);
    const auto port = server_.Start("127.0.0.1:0");
    EXPECT_TRUE(port.ok()) << port.status();
    address_ = absl::StrCat("127.0.0.1:", *port);
  }
  ~GroupServerTest() override {
    server_.Shutdown(absl::ZeroDuration());
    engine_->CheckIntegrity();
  }

  static link::Hello Hello() {
    link::Hello hello;
    hello.set_group("g0");
    hello.set_epoch(kEpoch);
    return hello;
  }
  void Serve() { server_.Serve(Hello(), engine_.get()); }

  // Waits for something to do, and does one step of it.
  StepEvents Step() {
    EXPECT_TRUE(engine_->WaitForWork(absl::Seconds(60))) << "nothing to do";
    server_.BeforeStep();
    const auto events = engine_->Step(now_.load());
    if (!events) return {};
    server_.Publish(*events);
    return *events;
  }
  // Steps until `num` more requests are over.
  void StepUntilDone(int num) {
    while (num > 0) num -= static_cast<int>(Step().dones.size());
  }
  void Advance(absl::Duration d) { now_ = now_.load() + d; }
  void WaitForRouters(int num) {
    while (server_.num_routers() != num) std::this_thread::yield();
  }

  // What grpc.health.v1 says of the server: its HealthCheckResponse.status.
  int Health() {
    grpc::GenericStub stub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice request;  // all fields at their defaults: the whole server
    const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                            grpc::ByteBuffer(&request, 1), &queue);
    call->StartCall();
    grpc::ByteBuffer reply;
    grpc::Status status;
    call->Finish(&reply, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    grpc::Slice bytes;
    EXPECT_TRUE(status.ok() && reply.DumpToSingleSlice(&bytes).ok());
    return bytes.size() == 2 ? bytes.begin()[1] : 0;  // field 1, one byte
  }

  std::atomic<absl::Time> now_{absl::UnixEpoch()};
  testing::FakeModel model_;
  std::unique_ptr<Engine> engine_;
  GroupServer server_;
  std::string address_;
};

TEST_F(GroupServerTest, WhileLoadingTellsHelloAndEveryRanksProgress) {
  FakeRouter early(address_);
  const Response hello = early.Next();
  EXPECT_EQ(hello.hello().epoch(), kEpoch);
  EXPECT_FALSE(hello.hello().ready());
  server_.ReportProgress({0, "weights", 10, 100});
  server_.ReportProgress({1, "weights", 20, 100});
  EXPECT_EQ(early.Next().load_progress().bytes_done(), 10);
  EXPECT_EQ(early.Next().load_progress().rank(), 1);

  server_.ReportProgress({0, "weights", 90, 100});
  FakeRouter late(address_);
  EXPECT_FALSE(late.Next().hello().ready());
  EXPECT_EQ(late.Next().load_progress().bytes_done(), 90);
  EXPECT_EQ(late.Next().load_progress().bytes_done(), 20);
}

TEST_F(GroupServerTest, WhileLoadingRefusesToServe) {
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 4));
  const link::Done done = router.NextDone();
  EXPECT_EQ(done.handle(), 5);
  EXPECT_EQ(done.code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(done.reason(), "LOADING");
}

TEST_F(GroupServerTest, OnceReadySaysHelloAndLoad) {
  FakeRouter router(address_);
  EXPECT_FALSE(router.Next().hello().ready());
  Serve();
  EXPECT_TRUE(router.Next().hello().ready());
  const link::Load load = router.Next().load();
  EXPECT_EQ(load.free_blocks(), 64);
  EXPECT_EQ(load.epoch(), kEpoch);
}

TEST_F(GroupServerTest, HealthFollowsTheLifeCycle) {
  EXPECT_EQ(Health(), 2);  // NOT_SERVING
  Serve();
  EXPECT_EQ(Health(), 1);  // SERVING
  server_.Drain();
  EXPECT_EQ(Health(), 2);
}

TEST_F(GroupServerTest, ASubmitIsAcknowledgedThenAnsweredThenDone) {
  Serve();
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch, Tokens(200), 3, 6));
  StepUntilDone(1);
  const link::Ack ack = router.Next(Response::kAck).ack();
  EXPECT_EQ(ack.handle(), 5);
  EXPECT_EQ(ack.cached_tokens(), 0);
  EXPECT_EQ(ack.shared_blocks(), 3);
  const link::Done done = router.NextDone();
  EXPECT_EQ(done.handle(), 5);
  EXPECT_EQ(done.attempt(), 1);
  EXPECT_EQ(done.code(), 0) << done.message();
  const Request request = testing::MakeRequest(5, Tokens(200), 3, 6);
  for (const ChoiceStart& choice : request.choices) {
    const auto expected = testing::ExpectedAnswer(request, choice, testing::TestLimits());
    EXPECT_EQ((router.tokens[{5, choice.index}]), expected.tokens);
  }
}

TEST_F(GroupServerTest, AnotherAttemptGoesOnAfterWhatWasEmitted) {
  Serve();
  const Request request = testing::MakeRequest(5, Tokens(30), 1, 6);
  const auto expected = testing::ExpectedAnswer(request, request.choices[0], testing::TestLimits());
  link::Submit submit = MakeSubmit(5, kEpoch, Tokens(30), 1, 6);
  submit.set_attempt(2);
  FakeRouter router(address_);
  for (int i = 0; i < 4; ++i) {
    submit.mutable_choices(0)->add_emitted_ids(expected.tokens[i]);
    router.tokens[{5, 0}].push_back(expected.tokens[i]);
  }
  router.Send(submit);
  StepUntilDone(1);
  EXPECT_EQ(router.Next(Response::kStepOutput).step_output().rows(0).attempt(), 2);
  router.NextDone();
  EXPECT_EQ((router.tokens[{5, 0}]), expected.tokens);
}

TEST_F(GroupServerTest, ACancelledRequestEndsInCancelled) {
  Serve();
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 500));
  Step();
  router.Cancel(5, -1);
  router.WaitUntilHeard();
  StepUntilDone(1);
  const link::Done done = router.NextDone();
  EXPECT_EQ(done.code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(done.reason(), "CANCELLED");
  EXPECT_EQ(engine_->Load().used_blocks, 0);
}

TEST_F(GroupServerTest, RoutersDoNotSeeEachOthersRequests) {
  Serve();
  FakeRouter a(address_), b(address_);
  a.Send(MakeSubmit(1, kEpoch, Tokens(20, 1), 1, 4));
  b.Send(MakeSubmit(1, kEpoch, Tokens(20, 2), 1, 4));
  StepUntilDone(2);
  EXPECT_EQ(a.NextDone().code(), 0);
  EXPECT_EQ(b.NextDone().code(), 0);
  const Request first = testing::MakeRequest(1, Tokens(20, 1), 1, 4);
  const Request second = testing::MakeRequest(1, Tokens(20, 2), 1, 4);
  const auto limits = testing::TestLimits();
  EXPECT_EQ((a.tokens[{1, 0}]), testing::ExpectedAnswer(first, first.choices[0], limits).tokens);
  EXPECT_EQ((b.tokens[{1, 0}]), testing::ExpectedAnswer(second, second.choices[0], limits).tokens);
}

TEST_F(GroupServerTest, BucketsAndDeltasGiveEveryRouterTheSameSet) {
  Serve();
  FakeRouter a(address_);
  a.SyncAll();
  a.Send(MakeSubmit(1, kEpoch, Tokens(200, 1), 1, 2));
  StepUntilDone(1);
  a.NextDone();
  EXPECT_EQ(a.cached.size(), 3);
  FakeRouter b(address_);
  b.SyncAll();
  EXPECT_EQ(b.cached, a.cached);

  for (uint64_t handle = 2; handle < 30; ++handle) {  // more than the cache can hold
    a.Send(MakeSubmit(handle, kEpoch, Tokens(200, handle), 1, 2));
    StepUntilDone(1);
    a.NextDone();
  }
  b.WaitUntilHeard();
  b.SyncAll();
  EXPECT_EQ(b.cached, a.cached);
  EXPECT_EQ(b.digest, a.digest);
  EXPECT_EQ(b.seq, a.seq);
  EXPECT_EQ(static_cast<int>(a.cached.size()), engine_->Load().cached_blocks);
}

TEST_F(GroupServerTest, ARouterThatComesBackHearsOnlyWhatItMissed) {
  Serve();
  FakeRouter before(address_), after(address_);
  before.SyncAll();
  before.Send(MakeSubmit(1, kEpoch, Tokens(200, 1), 1, 2));
  StepUntilDone(1);
  before.NextDone();
  const uint64_t seq = before.seq;
  before.Send(MakeSubmit(2, kEpoch, Tokens(200, 2), 1, 2));
  StepUntilDone(1);
  before.NextDone();
  after.Sync(kEpoch, seq);
  EXPECT_TRUE(after.Next(Response::kCacheSyncReply).cache_sync_reply().resumed());
  after.seq = seq;
  after.missing_buckets = 1;  // it lacks what `before` had: no digest to compare
  while (after.seq < before.seq) after.Next(Response::kCacheDelta);
  EXPECT_EQ(after.cached.size(), 3);
}

TEST_F(GroupServerTest, ALargeCacheIsSentBesideEverythingElse) {
  Serve();
  constexpr uint64_t kNumBlocks = 300'000;  // 4.8 MB: far more than may be queued at once
  StepEvents events;
  events.load = engine_->Load();
  for (uint64_t i = 0; i < kNumBlocks; ++i) events.cache.stored.push_back({i, ~i});
  server_.Publish(events);
  FakeRouter router(address_);
  router.Sync();
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 1));
  StepUntilDone(1);
  router.missing_buckets = kNumDigestBuckets;
  router.NextDone();
  EXPECT_GT(router.missing_buckets, 0);
  while (router.missing_buckets > 0) router.Next(Response::kBuckets);
  EXPECT_EQ(router.cached.size(), kNumBlocks);
}

TEST_F(GroupServerTest, OnlyTheBucketsAskedForAreSentAgain) {
  Serve();
  StepEvents events;
  events.load = engine_->Load();
  for (uint64_t i = 0; i < 1000; ++i) events.cache.stored.push_back({i, ~i});
  server_.Publish(events);
  FakeRouter router(address_);
  router.AskForDigests(kEpoch + 1);  // no answer
  router.AskForDigests(kEpoch);
  const link::BucketDigests digests = router.Next(Response::kBucketDigests).bucket_digests();
  EXPECT_EQ(digests.seq(), 1);
  uint64_t sum = 0, bucket_3 = 0;
  for (const uint64_t digest : digests.digests()) sum += digest;
  for (const BlockHash& hash : events.cache.stored) {
    sum -= DigestTerm(hash);
    if (DigestBucket(hash) == 3) bucket_3 += DigestTerm(hash);
  }
  EXPECT_EQ(sum, 0u);
  EXPECT_EQ(digests.digests(3), bucket_3);
  router.seq = 1;
  router.AskForBuckets(kEpoch, "\x03");
  EXPECT_EQ(router.Next(Response::kBuckets).buckets().buckets(), "\x03");
  EXPECT_EQ(router.digest, bucket_3);
}

TEST_F(GroupServerTest, ASubmitForAnotherEpochIsStale) {
  Serve();
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch - 1, Tokens(10), 1, 4));
  const link::Done done = router.NextDone();
  EXPECT_EQ(done.code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(done.reason(), "STALE_EPOCH");
  EXPECT_EQ(done.message(), "group, epoch: must be g0, 7, are g0, 6");
  link::Submit submit = MakeSubmit(6, kEpoch, Tokens(10), 1, 4);
  submit.set_group("another");
  router.Send(submit);
  EXPECT_EQ(router.NextDone().reason(), "STALE_EPOCH");
}

TEST_F(GroupServerTest, ARequestIsSentBackWhenTheQueueIsMuchLongerThanItsRouterThought) {
  Serve();
  StepEvents events;
  events.load = engine_->Load();
  events.load.drain_seconds = 1.0;
  server_.Publish(events);
  FakeRouter router(address_);
  link::Submit submit = MakeSubmit(5, kEpoch, Tokens(10), 1, 4);
  submit.set_expected_wait_seconds(0.79);  // 25 % more is less than 1 s
  router.Send(submit);
  const link::Refused refused = router.Next(Response::kRefused).refused();
  EXPECT_EQ(refused.handle(), 5);
  EXPECT_EQ(refused.attempt(), 1);
  EXPECT_EQ(refused.load().drain_seconds(), 1.0);
  EXPECT_EQ(refused.load().submits(), 1u);
  submit.set_expected_wait_seconds(0.81);
  router.Send(submit);  // under its old handle: it was never taken
  StepUntilDone(1);
  EXPECT_EQ(router.NextDone().code(), 0);
  events.load.drain_seconds = 1.0;
  server_.Publish(events);
  submit.clear_expected_wait_seconds();
  submit.set_handle(6);
  router.Send(submit);
  StepUntilDone(1);
  EXPECT_EQ(router.NextDone().code(), 0);
}

TEST_F(GroupServerTest, WhatIsExpectedInTheCacheIsNoQueue) {
  Serve();
  StepEvents events;
  events.load = engine_->Load();
  events.load.prefill_seconds_per_token = 1e-3;
  server_.Publish(events);
  FakeRouter router(address_);
  link::Submit submit = MakeSubmit(5, kEpoch, Tokens(200), 1, 4);
  submit.set_expected_cached_tokens(128);
  router.Send(submit);
  router.WaitUntilHeard();
  Advance(absl::Milliseconds(5));
  server_.PublishLoadIfDue();
  link::Load load;
  while (load.submits() == 0) load = router.Next(Response::kLoad).load();
  EXPECT_DOUBLE_EQ(load.drain_seconds(), 0.072);
}

TEST_F(GroupServerTest, WhatTheWireGetsWrongIsRefusedFieldByField) {
  Serve();
  link::Submit submit = MakeSubmit(5, kEpoch, Tokens(10), 1, 4);
  submit.mutable_sampling()->add_bias_ids(3);
  submit.set_priority(101);
  submit.set_timeout_us(-1);
  submit.set_request_id(std::string(129, 'x'));
  FakeRouter router(address_);
  router.Send(submit);
  const link::Done done = router.NextDone();
  EXPECT_EQ(done.code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(done.reason(), "INVALID");
  EXPECT_THAT(
      done.violations(),
      ::testing::ElementsAre(
          "sampling.logit_bias: needs a value for each id, has 1 ids and 0 values",
          "request_id: must be at most 128 bytes, is 129",
          "priority: must be in [-100, 100], is 101", "timeout_us: must not be negative, is -1"));
}

TEST_F(GroupServerTest, WhatTheEngineRefusesComesBackWithItsViolations) {
  Serve();
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch, {}, 1, 4));
  StepUntilDone(1);
  const link::Done empty = router.NextDone();
  EXPECT_EQ(empty.code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(empty.violations(), Contains(StartsWith("prompt")));

  router.Send(MakeSubmit(6, kEpoch, {testing::kVocabSize}, 1, 4));
  StepUntilDone(1);
  EXPECT_THAT(router.NextDone().violations(), Contains(HasSubstr("must be in [0, 96], is 97")));

  router.Send(MakeSubmit(7, kEpoch, Tokens(10), 0, 4));
  StepUntilDone(1);
  EXPECT_EQ(router.NextDone().code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GroupServerTest, ADeadlinePassesOnTheEnginesClock) {
  Serve();
  link::Submit submit = MakeSubmit(5, kEpoch, Tokens(10), 1, 500);
  submit.set_timeout_us(1000);
  FakeRouter router(address_);
  router.Send(submit);
  Step();
  Advance(absl::Milliseconds(1));
  StepUntilDone(1);
  const link::Done done = router.NextDone();
  EXPECT_EQ(done.code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(done.reason(), "DEADLINE");
  EXPECT_EQ(done.stage(), "decode");
}

TEST_F(GroupServerTest, AHandleInFlightMayNotBeUsedAgain) {
  Serve();
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 500));
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 500));
  const grpc::Status status = router.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "submit.handle: 5 is in flight on this stream");
}

TEST_F(GroupServerTest, AnEmptyMessageEndsTheStream) {
  FakeRouter router(address_);
  router.Send(link::LinkRequest());
  EXPECT_EQ(router.End().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GroupServerTest, ARouterThatVanishesFreesItsBlocks) {
  Serve();
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch, Tokens(200), 4, 500));
  Step();
  EXPECT_GT(engine_->Load().used_blocks, 0);
  router.Vanish();
  WaitForRouters(0);
  const StepEvents events = Step();
  ASSERT_EQ(events.dones.size(), 1);
  EXPECT_EQ(events.dones[0].reason, "CANCELLED");
  EXPECT_EQ(engine_->Load().used_blocks, 0);
}

TEST_F(GroupServerTest, ARouterThatDoesNotReadIsCutOff) {
  FakeRouter idle(address_);
  FakeRouter reader(address_);
  WaitForRouters(2);
  const std::string megabyte(1 << 20, 'x');
  int sent = 0;
  while (server_.num_routers() == 2 && sent < 1000) {
    server_.ReportProgress({0, megabyte, ++sent, 1000});
    ASSERT_EQ(reader.Next(Response::kLoadProgress).load_progress().bytes_done(), sent);
  }
  EXPECT_EQ(server_.num_routers(), 1);
  EXPECT_GT(sent, 64);
  EXPECT_FALSE(idle.End().ok());
}

TEST_F(GroupServerTest, LoadIsSentWhenDueAndNotBefore) {
  Serve();
  FakeRouter router(address_);
  router.Next(Response::kLoad);
  server_.PublishLoadIfDue();
  for (int ms = 10; ms <= 100; ms += 10) {
    Advance(absl::Milliseconds(10));
    server_.PublishLoadIfDue();  // idle: only the tenth is due
  }
  router.Sync();
  EXPECT_TRUE(router.Next().has_load());
  EXPECT_TRUE(router.Next().has_load());
  EXPECT_TRUE(router.Next().has_cache_sync_reply());
}

TEST_F(GroupServerTest, LoadCountsWhatTheEngineHasNotSeenYet) {
  Serve();
  server_.PublishLoadIfDue();
  FakeRouter router(address_);
  router.Next(Response::kLoad);
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 500));
  ASSERT_TRUE(engine_->WaitForWork(absl::Seconds(60)));
  Advance(absl::Milliseconds(5));
  server_.PublishLoadIfDue();
  EXPECT_EQ(router.Next(Response::kLoad).load().waiting(), 1);
  Step();
  Advance(absl::Milliseconds(5));
  server_.PublishLoadIfDue();
  const link::Load load = router.Next(Response::kLoad).load();
  EXPECT_EQ(load.waiting(), 0);
  EXPECT_EQ(load.running(), 1);
}

TEST_F(GroupServerTest, AfterDrainNothingNewIsTakenWhateverARouterSays) {
  Serve();
  FakeRouter router(address_);
  server_.Drain();
  link::LinkRequest undrain;
  undrain.mutable_drain()->set_on(false);
  router.Send(undrain);
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 4));
  StepUntilDone(1);
  EXPECT_EQ(router.NextDone().reason(), "DRAINING");
}

TEST_F(GroupServerTest, ShutdownWritesWhatWasPublishedAndEndsInUnavailable) {
  Serve();
  FakeRouter router(address_);
  router.Send(MakeSubmit(5, kEpoch, Tokens(10), 1, 4));
  StepUntilDone(1);
  std::thread shutdown([&] { server_.Shutdown(absl::Seconds(60)); });
  EXPECT_EQ(router.NextDone().code(), 0);
  EXPECT_EQ(router.End().error_code(), grpc::StatusCode::UNAVAILABLE);
  shutdown.join();
}

TEST_F(GroupServerTest, APortThatIsTakenIsNamed) {
  GroupServer second(Hello(), [] { return absl::UnixEpoch(); });
  const auto port = second.Start(address_);
  EXPECT_EQ(port.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(port.status().message()),
              HasSubstr("--listen: cannot listen on " + address_));
}

}  // namespace
}  // namespace bough
