// The public API keeps Buf's STANDARD rules and our own: every tunable has presence.

#include <string>

#include "bough/v1/admin.pb.h"
#include "bough/v1/generation.pb.h"
#include "bough/v1/model.pb.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "gtest/gtest.h"

namespace bough {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::FileDescriptor;

std::vector<const FileDescriptor*> ApiFiles() {
  return {v1::GenerateRequest::descriptor()->file(), v1::Model::descriptor()->file(),
          v1::Group::descriptor()->file()};
}

// FINISH_REASON for FinishReason.
std::string UpperSnake(const std::string& camel) {
  std::string out;
  for (char c : camel) {
    if (std::isupper(c) && !out.empty()) out += '_';
    out += static_cast<char>(std::toupper(c));
  }
  return out;
}

TEST(ApiStyle, PackageEndsInItsVersionAndMatchesTheFolder) {
  for (const FileDescriptor* file : ApiFiles()) {
    EXPECT_EQ(file->package(), "bough.v1");
    EXPECT_THAT(file->name(), testing::StartsWith("bough/v1/"));
  }
}

TEST(ApiStyle, EnumsStartWithUnspecifiedAndCarryTheirNameAsPrefix) {
  int enums = 0;
  for (const FileDescriptor* file : ApiFiles()) {
    for (int i = 0; i < file->enum_type_count(); ++i, ++enums) {
      const EnumDescriptor* e = file->enum_type(i);
      const std::string prefix = UpperSnake(e->name()) + "_";
      EXPECT_EQ(e->FindValueByNumber(0)->name(), prefix + "UNSPECIFIED");
      for (int v = 0; v < e->value_count(); ++v) {
        EXPECT_THAT(e->value(v)->name(), testing::StartsWith(prefix));
      }
    }
  }
  EXPECT_GT(enums, 0);
}

TEST(ApiStyle, EveryRpcHasItsOwnRequestAndResponse) {
  std::set<const Descriptor*> seen;
  for (const FileDescriptor* file : ApiFiles()) {
    for (int s = 0; s < file->service_count(); ++s) {
      const auto* service = file->service(s);
      EXPECT_THAT(service->name(), testing::EndsWith("Service"));
      for (int m = 0; m < service->method_count(); ++m) {
        const auto* method = service->method(m);
        EXPECT_EQ(method->input_type()->name(), method->name() + "Request");
        EXPECT_EQ(method->output_type()->name(), method->name() + "Response");
        EXPECT_TRUE(seen.insert(method->input_type()).second);
        EXPECT_TRUE(seen.insert(method->output_type()).second);
      }
    }
  }
  EXPECT_GE(seen.size(), 20u);
}

TEST(ApiStyle, EveryTunableIsOptional) {
  for (const Descriptor* message :
       {v1::SamplingOptions::descriptor(), v1::StopOptions::descriptor(),
        v1::OutputOptions::descriptor()}) {
    for (int i = 0; i < message->field_count(); ++i) {
      const FieldDescriptor* field = message->field(i);
      EXPECT_TRUE(field->is_repeated() || field->has_presence()) << field->full_name();
    }
  }
}

}  // namespace
}  // namespace bough
