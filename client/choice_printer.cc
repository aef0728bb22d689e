#include "client/choice_printer.h"

#include "client/answer.h"

namespace bough::client {

void ChoicePrinter::WriteLive(const v1::Choice& choice) {
  if (!started_ && headers_) out_ << "[choice " << choice.index() << "]\n";
  started_ = true;
  out_ << std::string_view(choice.text()).substr(written_);
  written_ = choice.text().size();
}

void ChoicePrinter::EndChoice(const v1::Choice& choice) {
  if (!choice.text().ends_with('\n')) out_ << '\n';
  out_ << LogprobTable(choice);
  ++live_;
  written_ = 0;
  started_ = false;
}

void ChoicePrinter::Update(const v1::GenerateResponse& answer) {
  while (live_ < answer.choices_size()) {
    const v1::Choice& choice = answer.choices(live_);
    WriteLive(choice);
    if (choice.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) break;
    EndChoice(choice);
  }
  out_.flush();
}

void ChoicePrinter::Finish(const v1::GenerateResponse& answer) {
  while (live_ < answer.choices_size()) {
    WriteLive(answer.choices(live_));
    EndChoice(answer.choices(live_));
  }
  out_.flush();
}

}  // namespace bough::client
