#include "router/unknown_fields.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "google/protobuf/unknown_field_set.h"

namespace bough::router {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

std::string Join(const std::string& path, const std::string& name) {
  return path.empty() ? name : absl::StrCat(path, ".", name);
}

void Walk(const Message& message, const std::string& path, std::vector<FieldViolation>& out) {
  const Reflection* reflection = message.GetReflection();
  const auto& unknown = reflection->GetUnknownFields(message);
  if (unknown.field_count() > 0) {
    out.push_back(
        {path.empty() ? message.GetDescriptor()->name() : path,
         absl::StrCat("must not have unknown fields, has field number ", unknown.field(0).number(),
                      " (", unknown.field_count(), " in all)")});
  }
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    const std::string name = Join(path, field->name());
    if (!field->is_repeated()) {
      Walk(reflection->GetMessage(message, field), name, out);
      continue;
    }
    for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
      Walk(reflection->GetRepeatedMessage(message, field, i), absl::StrCat(name, "[", i, "]"), out);
    }
  }
}

}  // namespace

std::vector<FieldViolation> FindUnknownFields(const Message& message) {
  std::vector<FieldViolation> out;
  Walk(message, "", out);
  return out;
}

}  // namespace bough::router
