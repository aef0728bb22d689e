// Prints the choices of one answer one after another, although they arrive interleaved: the lowest
// choice that has not ended is live, the others wait until their turn.
#pragma once

#include <ostream>

#include "bough/v1/generation.pb.h"

namespace bough::client {

// Not thread-safe.
class ChoicePrinter {
 public:
  // With headers, "[choice 0]" stands before each.
  ChoicePrinter(std::ostream& out, bool headers) : out_(out), headers_(headers) {}

  // Writes what `answer` has gained since the last call. REQUIRES: always the same growing answer.
  void Update(const v1::GenerateResponse& answer);
  // Writes what is left, ended or not, and ends the last line.
  void Finish(const v1::GenerateResponse& answer);

 private:
  void WriteLive(const v1::Choice& choice);
  void EndChoice(const v1::Choice& choice);

  std::ostream& out_;
  const bool headers_;
  int live_ = 0;          // index of the choice being printed
  size_t written_ = 0;    // bytes of its text that are out
  bool started_ = false;  // its header is out
};

}  // namespace bough::client
