#include "tests/integration/serving_system.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "gtest/gtest.h"

namespace bough::integration {
namespace {

constexpr char kModel[] = "models/demo";
constexpr absl::Duration kReady = absl::Seconds(60);

std::string Local(int port) { return absl::StrCat("127.0.0.1:", port); }

std::string LogPath(const std::string& name) {
  return absl::StrCat(testing::TempDir(), "/integration-", getpid(), "-", name, ".log");
}

// A GET of /metrics, body only.
std::string HttpGetMetrics(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  std::string response;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
    if (write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) response.append(buffer, n);
    }
  }
  close(fd);
  const size_t body = response.find("\r\n\r\n");
  return body == std::string::npos ? "" : response.substr(body + 4);
}

}  // namespace

ServingSystem::ServingSystem() {
  groups_[0] = StartGroup(0, {"--tp-size=2", "--ep-size=1"});
  groups_[1] = StartGroup(1, {"--tp-size=1", "--ep-size=2"});
  router_port_ = FreePorts(3);
  admin_port_ = router_port_ + 1;
  router_metrics_port_ = router_port_ + 2;
  router_ = std::make_unique<Process>(
      std::vector<std::string>{
          BOUGH_BIN_DIR "/bough-router", absl::StrCat("--model=", kModel),
          "--listen=" + Local(router_port_), "--admin-listen=" + Local(admin_port_),
          "--metrics-listen=" + Local(router_metrics_port_),
          absl::StrCat("--groups=g0=", Local(listen_port_[0]), ",g1=", Local(listen_port_[1]))},
      LogPath("router"));
  const auto channel = grpc::CreateChannel(Local(router_port_), grpc::InsecureChannelCredentials());
  generation_ = v1::GenerationService::NewStub(channel);
  admin_ = v1::AdminService::NewStub(
      grpc::CreateChannel(Local(admin_port_), grpc::InsecureChannelCredentials()));
  CHECK(WaitUntil(kReady,
                  [this] {
                    return Group("g0").state() == v1::GROUP_STATE_READY &&
                           Group("g1").state() == v1::GROUP_STATE_READY;
                  }))
      << "groups are not ready:\n"
      << Logs();
  grpc::ClientContext context;
  v1::GetModelResponse response;
  CHECK(v1::ModelService::NewStub(channel)
            ->GetModel(&context, v1::GetModelRequest(), &response)
            .ok());
  model_ = response.model();
}

std::unique_ptr<Process> ServingSystem::StartGroup(int index,
                                                   const std::vector<std::string>& layout) {
  listen_port_[index] = FreePorts(3);
  metrics_port_[index] = listen_port_[index] + 1;
  std::vector<std::string> argv = {"tools/mpirun.sh",
                                   "2",
                                   BOUGH_BIN_DIR "/bough-worker",
                                   absl::StrCat("--model=", kModel),
                                   absl::StrCat("--group=g", index),
                                   "--listen=" + Local(listen_port_[index]),
                                   absl::StrCat("--metrics-port=", metrics_port_[index]),
                                   "--kv-cache-memory-bytes=67108864",
                                   "--threads=1"};
  argv.insert(argv.end(), layout.begin(), layout.end());
  return std::make_unique<Process>(argv, LogPath(absl::StrCat("g", index)));
}

std::string ServingSystem::Logs() const {
  return absl::StrCat("router:\n", router_->Log(), "g0:\n", groups_[0]->Log(), "g1:\n",
                      groups_[1]->Log());
}

Streamed ServingSystem::Stream(const v1::GenerateRequest& request, absl::Duration timeout) const {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  v1::GenerateStreamRequest stream_request;
  *stream_request.mutable_request() = request;
  const auto reader = generation_->GenerateStream(&context, stream_request);
  Streamed result;
  v1::GenerateStreamResponse event;
  while (reader->Read(&event)) {
    if (event.has_start()) result.start = event.start();
    if (event.has_end()) result.end = event.end();
    if (!event.has_delta()) continue;
    const size_t index = static_cast<size_t>(event.delta().index());
    if (result.texts.size() <= index) {
      result.texts.resize(index + 1);
      result.token_ids.resize(index + 1);
    }
    result.texts[index] += event.delta().text();
    const auto& ids = event.delta().token_ids();
    result.token_ids[index].insert(result.token_ids[index].end(), ids.begin(), ids.end());
  }
  result.status = reader->Finish();
  return result;
}

v1::Group ServingSystem::Group(const std::string& name) const {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(5)));
  v1::ListGroupsResponse response;
  (void)admin_->ListGroups(&context, v1::ListGroupsRequest(), &response);
  for (const v1::Group& group : response.groups()) {
    if (group.name() == name) return group;
  }
  return {};
}

void ServingSystem::Drain(const std::string& name) const {
  grpc::ClientContext context;
  v1::DrainRequest request;
  v1::DrainResponse response;
  request.set_group(name);
  const grpc::Status status = admin_->Drain(&context, request, &response);
  CHECK(status.ok()) << status.error_message();
}

void ServingSystem::Undrain(const std::string& name) const {
  grpc::ClientContext context;
  v1::UndrainRequest request;
  v1::UndrainResponse response;
  request.set_group(name);
  const grpc::Status status = admin_->Undrain(&context, request, &response);
  CHECK(status.ok()) << status.error_message();
  CHECK(WaitUntil(absl::Seconds(10), [&] { return Group(name).state() == v1::GROUP_STATE_READY; }))
      << name << " stays drained";
}

bool ServingSystem::AnyBlockInUse() const {
  for (const char* name : {"g0", "g1"}) {
    const v1::Group group = Group(name);
    if (group.state() != v1::GROUP_STATE_READY) continue;
    if (group.requests_running() + group.requests_waiting() > 0) return true;
    if (group.free_blocks() + group.cached_blocks() != group.total_blocks()) return true;
  }
  return false;
}

bool ServingSystem::BlocksAreInUse() const {
  return WaitUntil(absl::Seconds(10), [this] { return AnyBlockInUse(); });
}

bool ServingSystem::AllBlocksComeBack() const {
  return WaitUntil(absl::Seconds(10), [this] { return !AnyBlockInUse(); });
}

void ServingSystem::KillGroup(const std::string& name) {
  groups_[name == "g0" ? 0 : 1]->KillTree();
}

std::string ServingSystem::ScrapeRouter() const { return HttpGetMetrics(router_metrics_port_); }

std::string ServingSystem::ScrapeRank(int group, int rank) const {
  return HttpGetMetrics(metrics_port_[group] + rank);
}

std::vector<int32_t> Prompt(int num_tokens, int salt) {
  std::vector<int32_t> ids = {1};
  while (static_cast<int>(ids.size()) < num_tokens) {
    ids.push_back(300 + (salt * 131 + static_cast<int>(ids.size()) * 17) % 1500);
  }
  return ids;
}

v1::GenerateRequest GreedyRequest(const std::vector<int32_t>& prompt, int max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stop()->set_max_tokens(max_tokens);
  request.mutable_stop()->set_ignore_eos(true);
  request.mutable_output()->set_return_token_ids(true);
  return request;
}

}  // namespace bough::integration
