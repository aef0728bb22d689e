// The sub-commands of `bough`. Each takes the arguments after its name and returns the exit code
// (client/io.h).
#pragma once

#include <string>
#include <vector>

#include "client/io.h"

namespace bough::client {

using Args = std::vector<std::string>;

int RunGenerate(const Args& args, Io& io);
int RunChat(const Args& args, Io& io);
int RunBench(const Args& args, Io& io);
int RunTop(const Args& args, Io& io);
int RunRoute(const Args& args, Io& io);

// args[0] is the command's name.
int RunCommand(const Args& args, Io& io);

}  // namespace bough::client
