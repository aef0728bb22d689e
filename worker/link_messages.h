// link.proto <-> the engine's words. Protobuf types come no further than this file and the stream.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "bough/group/v1/link.pb.h"
#include "common/sampling_params.h"
#include "worker/comm/mpi_group.h"
#include "worker/engine.h"
#include "worker/request.h"

namespace bough {

namespace link = ::bough::group::v1;

// The only way from the wire to a Request. Returns what only the wire can get wrong, fields named
// as in the public API; empty = `request` is complete, and the engine checks the rest. Strings are
// moved out of `submit`.
std::vector<FieldViolation> ToRequest(uint64_t link_id, link::Submit* submit, absl::Time now,
                                      Request* request);

// A submit refused before the engine saw it.
link::LinkResponse Refusal(const link::Submit& submit, absl::StatusCode code, std::string reason,
                           std::string message);
link::LinkResponse InvalidSubmit(const link::Submit& submit,
                                 const std::vector<FieldViolation>& violations);

link::LinkResponse ToMessage(const AckEvent& event);
link::LinkResponse ToMessage(const DoneEvent& event);
link::LinkResponse ToMessage(const RankProgress& progress);
link::Load ToLoad(const LoadReport& load);
void ToRow(const TokenEvent& event, link::Row* row);

}  // namespace bough
