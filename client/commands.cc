#include "client/commands.h"

#include <iomanip>
#include <optional>

#include "client/flags.h"

namespace bough::client {
namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Args&, Io&);
};

constexpr Command kCommands[] = {
    {"generate", "stream the continuation of a prompt", RunGenerate},
    {"chat", "talk with the model, turn by turn", RunChat},
    {"bench", "measure latency and throughput under load", RunBench},
    {"top", "live view of groups, queues and caches", RunTop},
    {"route", "explain where a prompt would go, and why", RunRoute},
};

void PrintHelp(std::ostream& out) {
  out << "usage: bough COMMAND [flags]\n\n";
  for (const Command& command : kCommands) {
    out << "  " << std::left << std::setw(10) << command.name << command.summary << "\n";
  }
  out << "  help      this text; 'bough COMMAND --help' lists a command's flags\n";
}

}  // namespace

int RunCommand(const Args& args, Io& io) {
  if (args.empty()) {
    PrintHelp(io.err);
    return kExitUsage;
  }
  const std::string& name = args[0];
  const bool help = name == "help" || name == "--help" || name == "-h";
  if (help && args.size() == 1) {
    PrintHelp(io.out);
    return kExitOk;
  }
  const std::string& wanted = help ? args[1] : name;
  const Args rest = help ? Args{"--help"} : Args(args.begin() + 1, args.end());
  std::vector<std::string> names = {"help"};
  for (const Command& command : kCommands) {
    if (wanted == command.name) return command.run(rest, io);
    names.push_back(command.name);
  }
  const std::optional<std::string> near = Nearest(wanted, names);
  io.err << "error: unknown command '" << wanted << "'; "
         << (near ? "did you mean '" + *near + "'?" : "see 'bough help'") << "\n";
  return kExitUsage;
}

}  // namespace bough::client
