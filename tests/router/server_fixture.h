// A router with its two servers before scripted groups; clients are real gRPC clients.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bough/v1/admin.grpc.pb.h"
#include "bough/v1/generation.grpc.pb.h"
#include "common/grpc_status.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "grpcpp/impl/codegen/rpc_method.h"
#include "gtest/gtest.h"
#include "router/clock.h"
#include "router/server.h"
#include "tests/testing/fake_group.h"
#include "tests/testing/tiny_tokenizer.h"

namespace bough::router {

using ::bough::testing::FakeGroup;
using ::bough::testing::FakeScript;
using ::bough::testing::TinyText;
using v1::GenerateRequest;

// Waits for what another thread is about to do.
template <typename Condition>
bool Eventually(Condition condition) {
  const absl::Time end = MonotonicNow() + absl::Seconds(20);
  while (!condition()) {
    if (MonotonicNow() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

inline FakeScript Says(const std::string& text) {
  FakeScript script;
  script.tokens = TinyText(text);
  script.tokens.push_back(2);  // EOS
  return script;
}

struct StreamResult {
  grpc::Status status;
  std::string text;  // of choice 0
  v1::StreamStart start;
  std::vector<v1::StreamFinish> finishes;
  v1::StreamEnd end;
  ApiError error;
};

class ServerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { tokenizer_ = bough::testing::LoadTinyTokenizer(); }

  FakeGroup& AddGroup(const std::string& name, FakeScript script) {
    groups_.push_back(std::make_unique<FakeGroup>(name, std::move(script)));
    config_.groups.push_back({name, groups_.back()->address()});
    return *groups_.back();
  }

  // Starts the router and waits until it serves.
  void Start() {
    config_.listen = config_.admin_listen = "127.0.0.1:0";
    config_.served_model_name = "tiny";
    metrics_ = std::make_unique<RouterMetrics>(&registry_, config_.groups);
    router_ = std::make_unique<Router>(config_, tokenizer_.get(), metrics_.get());
    auto server = Server::Start(router_.get());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    public_ = Channel(server_->public_port());
    admin_channel_ = Channel(server_->admin_port());
    generation_ = v1::GenerationService::NewStub(public_);
    admin_ = v1::AdminService::NewStub(admin_channel_);
    ASSERT_TRUE(Eventually([this] {
      int ready = 0;
      router_->Inspect([&](const Dispatcher& d) { ready = d.groups().num_ready(); });
      return ready == static_cast<int>(groups_.size());
    }));
  }

  static std::shared_ptr<grpc::Channel> Channel(int port) {
    grpc::ChannelArguments args;
    args.SetMaxSendMessageSize(-1);
    args.SetInt("grpc.http2.bdp_probe", 0);  // a reader that is slow stays slow
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                     grpc::InsecureChannelCredentials(), args);
  }

  static GenerateRequest Ask(const std::string& text = "hello") {
    GenerateRequest request;
    request.set_text(text);
    return request;
  }

  grpc::Status Generate(const GenerateRequest& request, v1::GenerateResponse* response) {
    grpc::ClientContext context;
    return generation_->Generate(&context, request, response);
  }

  StreamResult Stream(const GenerateRequest& request, absl::Duration timeout = absl::Seconds(30)) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
    v1::GenerateStreamRequest message;
    *message.mutable_request() = request;
    auto reader = generation_->GenerateStream(&context, message);
    StreamResult out;
    v1::GenerateStreamResponse event;
    while (reader->Read(&event)) {
      if (event.has_start()) out.start = event.start();
      if (event.has_delta() && event.delta().index() == 0) out.text += event.delta().text();
      if (event.has_finish()) out.finishes.push_back(event.finish());
      if (event.has_end()) out.end = event.end();
    }
    out.status = reader->Finish();
    out.error = FromDetails(out.status).value_or(ApiError{});
    return out;
  }

  // Any unary method by bytes, for services whose proto is not ours.
  static std::string Raw(const std::shared_ptr<grpc::Channel>& channel, const char* method,
                         const std::string& request, grpc::Status* status) {
    grpc::ClientContext context;
    const grpc::Slice slice(request);
    grpc::ByteBuffer in(&slice, 1), out;
    *status = grpc::internal::BlockingUnaryCall(
        channel.get(), grpc::internal::RpcMethod(method, grpc::internal::RpcMethod::NORMAL_RPC),
        &context, in, &out);
    return Text(out);
  }

  static std::string Text(const grpc::ByteBuffer& bytes) {
    std::vector<grpc::Slice> slices;
    std::string text;
    if (!bytes.Dump(&slices).ok()) return text;
    for (const grpc::Slice& slice : slices) {
      text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    }
    return text;
  }

  // 1 = SERVING, 2 = NOT_SERVING.
  static int Health(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
    grpc::Status status;
    std::string request;
    if (!service.empty()) request = std::string{0x0a, static_cast<char>(service.size())} + service;
    const std::string reply = Raw(channel, "/grpc.health.v1.Health/Check", request, &status);
    return status.ok() && reply.size() == 2 ? reply[1] : -1;
  }

  inline static std::unique_ptr<Tokenizer> tokenizer_;
  RouterConfig config_;
  Metrics registry_;
  std::vector<std::unique_ptr<FakeGroup>> groups_;
  std::unique_ptr<RouterMetrics> metrics_;
  std::unique_ptr<Router> router_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> public_, admin_channel_;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

}  // namespace bough::router
