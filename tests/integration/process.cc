#include "tests/integration/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "absl/strings/numbers.h"
#include "common/check.h"

namespace bough::integration {
namespace {

// The parent of every process there is.
std::map<pid_t, pid_t> Parents() {
  std::map<pid_t, pid_t> parents;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    pid_t pid;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &pid)) continue;
    std::ifstream file(entry.path() / "stat");
    std::string line;
    std::getline(file, line);
    const size_t name_end = line.rfind(')');  // "pid (name) state ppid ..."
    if (name_end == std::string::npos) continue;
    std::istringstream rest(line.substr(name_end + 1));
    char state;
    pid_t parent;
    if (rest >> state >> parent) parents[pid] = parent;
  }
  return parents;
}

std::vector<pid_t> Descendants(pid_t root) {
  const std::map<pid_t, pid_t> parents = Parents();
  std::vector<pid_t> found;
  for (const auto& [pid, parent] : parents) {
    for (pid_t up = parent; up > 1;) {
      if (up == root) {
        found.push_back(pid);
        break;
      }
      const auto next = parents.find(up);
      up = next == parents.end() ? 0 : next->second;
    }
  }
  return found;
}

bool Bind(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  const bool free = bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  return free;
}

}  // namespace

int FreePorts(int count) {
  // Below the range from which the kernel takes ports of outgoing connections.
  static int next = 20000 + getpid() % 5000 * 2;
  while (true) {
    CHECK_LT(next, 32000) << "no free ports";
    const int first = next;
    next += count;
    int num_free = 0;
    while (num_free < count && Bind(first + num_free)) ++num_free;
    if (num_free == count) return first;
  }
}

Process::Process(std::vector<std::string> argv, std::string log_path)
    : log_path_(std::move(log_path)) {
  std::vector<char*> arguments;
  for (std::string& arg : argv) arguments.push_back(arg.data());
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  CHECK(pid_ >= 0) << "fork";
  if (pid_ > 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  const int log = open(log_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  const int none = open("/dev/null", O_RDONLY);
  dup2(none, STDIN_FILENO);
  execv(arguments[0], arguments.data());
  _exit(127);
}

void Process::KillTree() {
  if (reaped_) return;
  const std::vector<pid_t> descendants = Descendants(pid_);
  kill(pid_, SIGKILL);
  for (const pid_t pid : descendants) kill(pid, SIGKILL);
  waitpid(pid_, &status_, 0);
  reaped_ = true;
}

bool Process::running() {
  if (!reaped_ && waitpid(pid_, &status_, WNOHANG) == pid_) reaped_ = true;
  return !reaped_;
}

int Process::Wait(absl::Duration timeout) {
  if (!WaitUntil(timeout, [this] { return !running(); })) return -1;
  return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
}

std::string Process::Log() const {
  std::ifstream file(log_path_);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace bough::integration
