// A router that says and hears exactly what a test wants, over real gRPC.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "bough/group/v1/link.grpc.pb.h"
#include "common/block_hash.h"
#include "grpcpp/grpcpp.h"

namespace bough::testing {

namespace link = ::bough::group::v1;

inline link::Submit MakeSubmit(uint64_t handle, uint64_t epoch, const std::vector<int32_t>& prompt,
                               int n, int max_tokens) {
  link::Submit submit;
  submit.set_handle(handle);
  submit.set_group("g0");
  submit.set_epoch(epoch);
  submit.set_attempt(1);
  submit.set_request_id("r" + std::to_string(handle));
  submit.mutable_prompt_ids()->Add(prompt.begin(), prompt.end());
  for (int i = 0; i < n; ++i) submit.add_choices()->set_index(i);
  link::Sampling* sampling = submit.mutable_sampling();
  sampling->set_temperature(1);
  sampling->set_top_p(1);
  sampling->set_repetition_penalty(1);
  sampling->set_seed(handle);
  sampling->set_ignore_eos(true);
  sampling->set_max_tokens(max_tokens);
  sampling->set_logprobs(-1);
  return submit;
}

class FakeRouter {
 public:
  explicit FakeRouter(const std::string& address)
      : stub_(link::GroupLinkService::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    stream_ = stub_->Link(&context_);
  }

  void Send(const link::LinkRequest& request) { EXPECT_TRUE(stream_->Write(request)); }
  void Send(const link::Submit& submit) {
    link::LinkRequest request;
    *request.mutable_submit() = submit;
    Send(request);
  }
  void Cancel(uint64_t handle, int choice) {
    link::LinkRequest request;
    request.mutable_cancel()->set_handle(handle);
    request.mutable_cancel()->set_choice(choice);
    Send(request);
  }
  // Asks for all that follows delta `seq` of `epoch`; (0, 0) = for everything.
  void Sync(uint64_t of_epoch = 0, uint64_t after_seq = 0) {
    link::LinkRequest request;
    request.mutable_cache_sync()->set_epoch(of_epoch);
    request.mutable_cache_sync()->set_seq(after_seq);
    Send(request);
  }
  // Has all of the group's cached blocks.
  void SyncAll() {
    Sync();
    for (missing_buckets = kNumDigestBuckets; missing_buckets > 0;) {
      Next(link::LinkResponse::kBuckets);
    }
  }
  void AskForDigests(uint64_t of_epoch) {
    link::LinkRequest request;
    request.mutable_digests()->set_epoch(of_epoch);
    Send(request);
  }
  void AskForBuckets(uint64_t of_epoch, const std::string& buckets) {
    link::LinkRequest request;
    request.mutable_buckets()->set_epoch(of_epoch);
    request.mutable_buckets()->set_buckets(buckets);
    Send(request);
  }
  // The group takes messages in order: once it answers this one it has taken all before.
  void WaitUntilHeard() {
    while (epoch == 0) Next();
    AskForDigests(epoch);
    Next(link::LinkResponse::kBucketDigests);
  }
  void Vanish() { context_.TryCancel(); }

  // The next message; an empty one when the stream has ended.
  link::LinkResponse Next() {
    link::LinkResponse response;
    if (!stream_->Read(&response)) return {};
    Note(response);
    return response;
  }
  // The next message of this kind; what comes before it is only noted.
  link::LinkResponse Next(link::LinkResponse::MessageCase kind) {
    for (;;) {
      link::LinkResponse response = Next();
      if (response.message_case() == kind) return response;
      if (response.message_case() == link::LinkResponse::MESSAGE_NOT_SET) {
        ADD_FAILURE() << "the stream ended before message " << kind;
        return {};
      }
    }
  }
  link::Done NextDone() { return Next(link::LinkResponse::kDone).done(); }
  // The stream's status, once it has ended.
  grpc::Status End() {
    while (Next().message_case() != link::LinkResponse::MESSAGE_NOT_SET) {
    }
    return stream_->Finish();
  }

  // Tokens by (handle, choice), in order of index.
  std::map<std::pair<uint64_t, int>, std::vector<int32_t>> tokens;
  // The group's cached blocks as told, their digest, and the last seq.
  std::set<std::string> cached;
  uint64_t epoch = 0, digest = 0, seq = 0;
  int missing_buckets = 0;  // after Sync: contents that did not come yet

 private:
  void Note(const link::LinkResponse& response) {
    for (const link::Row& row : response.step_output().rows()) {
      std::vector<int32_t>& answer = tokens[{row.handle(), row.choice()}];
      EXPECT_EQ(static_cast<size_t>(row.index()), answer.size());
      answer.push_back(row.token());
    }
    if (response.has_hello()) epoch = response.hello().epoch();
    if (response.has_cache_sync_reply() && !response.cache_sync_reply().resumed()) {
      Clear();
      seq = response.cache_sync_reply().seq();
    }
    if (response.has_buckets()) {
      EXPECT_EQ(response.buckets().seq(), seq);
      missing_buckets -= static_cast<int>(response.buckets().buckets().size());
      for (const std::string& hash : Split(response.buckets().hashes())) Store(hash);
    }
    if (response.has_cache_delta()) {
      const link::CacheDelta& delta = response.cache_delta();
      EXPECT_EQ(delta.seq(), seq + 1);
      seq = delta.seq();
      if (delta.cleared()) Clear();
      for (const std::string& hash : Split(delta.removed())) {
        EXPECT_EQ(cached.erase(hash), 1u);
        digest -= Term(hash);
      }
      for (const std::string& hash : Split(delta.stored())) Store(hash);
      if (missing_buckets == 0) {
        EXPECT_EQ(delta.digest(), digest);
      }
    }
  }
  void Clear() {
    cached.clear();
    digest = 0;
  }
  void Store(const std::string& hash) {
    if (cached.insert(hash).second) digest += Term(hash);
  }
  static std::vector<std::string> Split(const std::string& hashes) {
    EXPECT_EQ(hashes.size() % 16, 0u);
    std::vector<std::string> parts;
    for (size_t i = 0; i < hashes.size(); i += 16) parts.push_back(hashes.substr(i, 16));
    return parts;
  }
  static uint64_t Term(const std::string& bytes) {
    BlockHash hash;
    std::memcpy(&hash.lo, bytes.data(), 8);
    std::memcpy(&hash.hi, bytes.data() + 8, 8);
    return DigestTerm(hash);
  }

  std::unique_ptr<link::GroupLinkService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<link::LinkRequest, link::LinkResponse>> stream_;
};

}  // namespace bough::testing
