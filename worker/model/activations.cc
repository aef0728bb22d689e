#include "worker/model/activations.h"

namespace bough {

Products::Products(Device* device) : device_(device), dtype_(device->activation_dtype()) {
  if (!device->is_cuda()) return;
  workspace_ = DeviceBuffer::Scratch(device, kGemmWorkspaceBytes / 4, DType::kI32);
  device->Zero(workspace_.data(), workspace_.num_bytes());
}

void Products::Dense(const Rows& x, const Weight& w, int m, int n, int k, void* y,
                     DType y_dtype) const {
  device_->ops().Gemm({.x = x.data,
                       .x_scale = x.scale,
                       .w = w.data,
                       .w_scale = w.scale,
                       .y = y,
                       .workspace = workspace_.data(),
                       .m = m,
                       .n = n,
                       .k = k,
                       .dtype = x.dtype,
                       .w_dtype = w.dtype,
                       .out_dtype = y_dtype},
                      device_->stream());
}

void Products::Grouped(const Rows& x, const Weight& w, const Experts& experts, int n, int k,
                       void* y) const {
  device_->ops().GroupedGemm({.x = x.data,
                              .x_scale = x.scale,
                              .w = w.data,
                              .w_scale = w.scale,
                              .expert_offsets = experts.offsets,
                              .y = y,
                              .workspace = workspace_.data(),
                              .num_experts = experts.num_experts,
                              .num_rows = experts.max_rows,
                              .n = n,
                              .k = k,
                              .dtype = x.dtype,
                              .w_dtype = w.dtype,
                              .out_dtype = dtype_,
                              .offsets_known = experts.offsets_known},
                             device_->stream());
}

}  // namespace bough
