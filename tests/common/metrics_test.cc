#include "common/metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

namespace bough {
namespace {

using testing::HasSubstr;

// The HTTP response of a GET on this host, headers included; empty when nothing listens.
std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string response;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) response.append(buffer, n);
  }
  close(fd);
  return response;
}

TEST(Metrics, TextHasNameHelpLabelsAndValue) {
  Metrics metrics;
  metrics.Counter("generated_tokens_total", "Tokens sent.", {{"group", "g0"}}).Increment(3);
  metrics.Gauge("requests_running", "Requests in the batch.").Set(2);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("# HELP bough_generated_tokens_total Tokens sent.\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE bough_generated_tokens_total counter\n"));
  EXPECT_THAT(text, HasSubstr("bough_generated_tokens_total{group=\"g0\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("bough_requests_running 2\n"));
}

TEST(Metrics, TheSameNameAndLabelsGiveTheSameHandle) {
  Metrics metrics;
  auto& a = metrics.Counter("x_total", "X.", {{"rank", "0"}});
  EXPECT_EQ(&a, &metrics.Counter("x_total", "X.", {{"rank", "0"}}));
  EXPECT_NE(&a, &metrics.Counter("x_total", "X.", {{"rank", "1"}}));
  auto& h = metrics.Histogram("y_seconds", "Y.", {1, 2});
  EXPECT_EQ(&h, &metrics.Histogram("y_seconds", "Y.", {1, 2}));
}

TEST(Metrics, HistogramsCountIntoTheirBuckets) {
  Metrics metrics;
  auto& h = metrics.Histogram("step_seconds", "A step.", Metrics::SecondsBuckets());
  h.Observe(0.001);
  h.Observe(0.03);
  h.Observe(100);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("bough_step_seconds_bucket{le=\"0.001\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("bough_step_seconds_bucket{le=\"60\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("bough_step_seconds_bucket{le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("bough_step_seconds_count 3\n"));
}

TEST(Metrics, AScrapeSeesWhatTextSays) {
  Metrics metrics;
  metrics.Counter("x_total", "X.").Increment();
  const absl::StatusOr<int> port = metrics.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  const std::string response = Get(*port, "/metrics");
  EXPECT_THAT(response, HasSubstr("200 OK"));
  EXPECT_THAT(response, HasSubstr("\nbough_x_total 1\n"));
  metrics.Counter("x_total", "X.").Increment();
  EXPECT_THAT(Get(*port, "/metrics"), HasSubstr("\nbough_x_total 2\n"));
}

TEST(Metrics, ServesNothingButMetrics) {
  Metrics metrics;
  const absl::StatusOr<int> port = metrics.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  EXPECT_THAT(Get(*port, "/README.md"), HasSubstr("404"));
}

TEST(Metrics, ATakenPortIsAnErrorThatNamesTheAddress) {
  Metrics first, second;
  const absl::StatusOr<int> port = first.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  const std::string address = "127.0.0.1:" + std::to_string(*port);
  const absl::Status status = second.Serve(address).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(address));
}

TEST(Metrics, AnAddressWithoutHostAndPortIsRefused) {
  for (const char* address : {"", "9090", "localhost", "127.0.0.1:", "127.0.0.1:http",
                              "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:1,127.0.0.1:2"}) {
    Metrics metrics;
    const absl::Status status = metrics.Serve(address).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(status.message()), HasSubstr("\"" + std::string(address) + "\""));
  }
}

}  // namespace
}  // namespace bough
