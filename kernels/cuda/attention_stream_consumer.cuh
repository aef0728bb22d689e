// The warps that read the stream kernel's ring.
#pragma once

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_stream_shape.cuh"

namespace bough::cuda {

// Four 8x8 matrices of 16-bit elements whose rows' addresses the lanes name: lane 8 i + r row r of
// matrix i. Not volatile, so that they mix with what does not depend on them: `address` must come from
// StageAddress. Lane (g, t) gets columns 2t, 2t + 1 of row g; transposed, rows 2t, 2t + 1 of column g.
__device__ inline void LoadFragments(uint32_t (&r)[4], uint32_t address) {
  asm("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(address));
}
__device__ inline void LoadFragmentsTransposed(uint32_t (&r)[4], uint32_t address) {
  asm("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(address));
}

// One of the four warps that read the ring. Lane (g, t) holds, of tile n of 8 query rows, rows 2t and
// 2t + 1 (index c): m and l of them (l of the lane's own keys only) and o^T of elements 16 j + g and
// + 8 in o[n][j][c] and [c + 2].
template <typename S>
struct StreamConsumer {
  using T = typename S::T;
  using Info = typename StreamShared<S>::Info;
  static constexpr int kSteps = S::kDim / 16;  // of 16 elements
  static constexpr int kColumns = S::kDim / 4;

  const AttentionParams& p;
  const WorkPlan& plan;
  StreamShared<S>& shared;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int first_row = 16 * warp;  // of its keys in a block
  float scale = 0;
  int num_pending = 0;
  uint32_t q[S::kTiles][kSteps][2];
  float m[S::kTiles][2], l[S::kTiles][2];
  float o[S::kTiles][kSteps][4];

  __device__ static void Sync() { SyncThreads(1, kConsumers); }

  // Of an e4m3 cache, elements are taken in the order of K's bytes: lane t's four of 16 stand together.
  __device__ void LoadQueries(int stage) {
    const uint8_t* rows = shared.queries[stage] + g * S::kQueryStride;
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        const uint8_t* at = rows + n * 8 * S::kQueryStride + j * 32;
        if constexpr (S::kWidens) {
          const uint2 pairs = *reinterpret_cast<const uint2*>(at + t * 8);
          q[n][j][0] = ConvertPair<T>(pairs.x);
          q[n][j][1] = ConvertPair<T>(pairs.y);
        } else {
          q[n][j][0] = *reinterpret_cast<const uint32_t*>(at + t * 4);
          q[n][j][1] = *reinterpret_cast<const uint32_t*>(at + t * 4 + 16);
        }
      }
    }
  }

  // Nothing of a part is left, so that its registers are free while it is written.
  __device__ void Clear() {
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
      m[n][0] = m[n][1] = -INFINITY;
      l[n][0] = l[n][1] = 0;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        q[n][j][0] = q[n][j][1] = 0;
        o[n][j][0] = o[n][j][1] = o[n][j][2] = o[n][j][3] = 0;
      }
    }
  }

  __device__ int NumRows(const Info& info) const { return info.part.num_units * p.HeadsPerKv(); }

  // Of a stage's keys and values, for reads that come after this place.
  __device__ uint32_t StageAddress(int stage) const {
    uint32_t address = SharedAddress(shared.keys_values[stage]);
    asm volatile("" : "+r"(address)::"memory");
    return address;
  }

  // s = products of the warp's 16 keys (g, g + 8) and the query rows.
  __device__ void Scores(uint32_t keys, int num_rows, float (&s)[S::kTiles][4]) const {
    constexpr int kChains = S::kTiles == 1 ? 4 : 2;  // sums that do not wait for each other
    float sums[S::kTiles][kChains][4] = {};
    const int row = first_row + lane % 16, chunk = lane / 16;
    const uint32_t base = keys + row * S::kBoxBytes +
                          (S::kBoxBytes == 128 ? chunk ^ row % 8 : chunk ^ row / 2 % 4) * 16;
    const auto multiply = [&](const uint32_t(&a)[4], int step) {
#pragma unroll
      for (int n = 0; n < S::kTiles; ++n) {
        if (n == 0 || num_rows > 8 * n) {
          Mma<T>(sums[n][step % kChains], a, q[n][step][0], q[n][step][1]);
        }
      }
    };
    constexpr int kPairs = S::kRowBytes / 32;  // of chunks
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      constexpr int kBoxPairs = S::kBoxBytes / 32;
      uint32_t r[4];
      LoadFragments(r, (base ^ i % kBoxPairs * 32) + i / kBoxPairs * S::kBoxSize);
      if constexpr (S::kWidens) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t a[4] = {WidenPair(static_cast<uint16_t>(r[2 * half])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half] >> 16)),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1] >> 16))};
          multiply(a, 2 * i + half);
        }
      } else {
        multiply(r, i);
      }
    }
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = 0;
#pragma unroll
        for (int chain = 0; chain < kChains; ++chain) s[n][i] += sums[n][chain][i];
      }
    }
  }

  // Scores of keys that a row does not see become -inf.
  __device__ void Mask(const Info& info, float (&s)[S::kTiles][4]) const {
    const int heads = p.HeadsPerKv();
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int row = 8 * n + 2 * t + c;
        const int position = row < NumRows(info) ? info.units[row / heads].position : 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int key = info.key + first_row + g + 8 * r;
          const bool seen =
              key <= position && (p.sliding_window == 0 || key > position - p.sliding_window);
          if (!seen) s[n][2 * r + c] = -INFINITY;
        }
      }
    }
  }

  // Turns scores of tile n into weights relative to m. m follows the maximum only when it is left behind
  // by more than kSlack: weights of up to 2^kSlack do no harm, and the warp need not agree on more.
  __device__ void AbsorbScores(int n, float (&s)[4]) {
    constexpr float kSlack = 8;
    bool behind = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[i] *= scale;
      behind |= s[i] > m[n][i % 2] + kSlack;
    }
    if (__any_sync(kFullWarp, behind)) FollowMaximum(n, s);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float finite_m = m[n][c] == -INFINITY ? 0 : m[n][c];  // no key may have been seen yet
      s[c] = Exp2(s[c] - finite_m);
      s[c + 2] = Exp2(s[c + 2] - finite_m);
      l[n][c] += s[c] + s[c + 2];
    }
  }

  __device__ void FollowMaximum(int n, const float (&s)[4]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float max = fmaxf(m[n][c], fmaxf(s[c], s[c + 2]));
#pragma unroll
      for (int other = 4; other < kWarpSize; other *= 2) {
        max = fmaxf(max, __shfl_xor_sync(kFullWarp, max, other));
      }
      const float rescale = max == -INFINITY ? 0 : Exp2(m[n][c] - max);
      m[n][c] = max;
      l[n][c] *= rescale;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        o[n][j][c] *= rescale;
        o[n][j][c + 2] *= rescale;
      }
    }
  }

  // o += V^T weights of the warp's 16 keys.
  __device__ void AddWeighted(uint32_t values, int num_rows,
                              const uint32_t (&weights)[S::kTiles][2]) {
    const auto multiply = [&](const uint32_t(&a)[4], int j) {
#pragma unroll
      for (int n = 0; n < S::kTiles; ++n) {
        if (n == 0 || num_rows > 8 * n) Mma<T>(o[n][j], a, weights[n][0], weights[n][1]);
      }
    };
    if constexpr (S::kWidens) {
      const uint32_t base = values + lane / 2 * 128 + ((lane % 2 * 4 + warp) ^ lane / 2 % 8) * 16;
#pragma unroll
      for (int i = 0; i < S::kDim / 32; ++i) {
        uint32_t r[4];
        LoadFragments(r, base + i * 32 * kBlockKeys);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t a[4] = {WidenPair(static_cast<uint16_t>(r[2 * half])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1])),
                                 WidenPair(static_cast<uint16_t>(r[2 * half] >> 16)),
                                 WidenPair(static_cast<uint16_t>(r[2 * half + 1] >> 16))};
          multiply(a, 2 * i + half);
        }
      }
    } else {
      const int row = first_row + lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
      const uint32_t base = values + row * 128 + (chunk ^ row % 8) * 16;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        uint32_t a[4];
        LoadFragmentsTransposed(a, (base ^ j % 4 * 32) + j / 4 * S::kBoxSize);
        multiply(a, j);
      }
    }
  }

  __device__ void TakeIn(int stage, const Info& info) {
    const uint32_t keys = StageAddress(stage);
    float s[S::kTiles][4];
    Scores(keys, NumRows(info), s);
    if (info.flags & kMasked) Mask(info, s);
    uint32_t weights[S::kTiles][2];  // P^T [keys, rows] as B operand
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
      if (n > 0 && NumRows(info) <= 8 * n) continue;
      AbsorbScores(n, s[n]);
      weights[n][0] = Transpose8x8(PackPair<T>(s[n][0], s[n][1]));
      weights[n][1] = Transpose8x8(PackPair<T>(s[n][2], s[n][3]));
    }
    AddWeighted(keys + S::kMatrixBytes, NumRows(info), weights);
  }

  // Merges the four warps' states of tile n through the stage's memory, and writes its rows: to o if
  // the part is all there is for its units, else to the part's slot.
  __device__ void WriteTile(int n, int stage, const Info& info, bool complete) {
    float* const memory = reinterpret_cast<float*>(shared.keys_values[stage]);
    const auto place = [&](int of_warp, int row, int column) {
      return memory + (of_warp * 8 + row) * S::kDim + (column ^ row / 2 * 8);
    };
    Sync();  // the stage's readers, or the last tile's
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = l[n][c];
#pragma unroll
      for (int other = 4; other < kWarpSize; other *= 2) {
        sum += __shfl_xor_sync(kFullWarp, sum, other);
      }
      if (g == 0) shared.ml[warp][2 * t + c] = {m[n][c], sum};
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        *place(warp, 2 * t + c, 16 * j + g) = o[n][j][c];
        *place(warp, 2 * t + c, 16 * j + g + 8) = o[n][j][c + 2];
      }
    }
    Sync();
    const int heads = p.HeadsPerKv(), num_rows = min(8, NumRows(info) - 8 * n);
    for (int i = threadIdx.x; i < num_rows * kColumns; i += kConsumers) {
      const int row = i / kColumns, column = i % kColumns * 4;
      float2 ml[kConsumerWarps];
      float4 part[kConsumerWarps];
#pragma unroll
      for (int w = 0; w < kConsumerWarps; ++w) {
        ml[w] = shared.ml[w][row];
        part[w] = *reinterpret_cast<const float4*>(place(w, row, column));
      }
      MergedState state;
      state.Add(ml, part);
      const int of_part = 8 * n + row, token = info.units[of_part / heads].token;
      if (complete && token >= 0) {
        state.Write(p.Output(token, info.part.kv_head * heads + of_part % heads) + column,
                    info.part.v_scale);
      } else if (!complete) {
        float* slot = plan.Slot(info.part.slot + of_part, S::kDim);
        *reinterpret_cast<float4*>(slot + column) = state.o;
        if (column == 0) *reinterpret_cast<float2*>(slot + S::kDim) = {state.m, state.l};
      }
    }
  }

  __device__ void Finish(int stage, const Info& info) {
    const StreamPart& part = info.part;
    const int num_blocks = max(1, part.block_end - part.block_begin);
    const bool complete = part.is_own && part.num_blocks == num_blocks;
    const int num_units = part.num_units;
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
      if (n == 0 || NumRows(info) > 8 * n) WriteTile(n, stage, info, complete);
    }
    FenceAsyncProxy();  // the next copy writes where this one wrote
    if (complete) return;
    if (static_cast<int>(threadIdx.x) < num_units) {
      const int i = threadIdx.x;
      const auto& unit = info.units[i];
      const bool alone = num_units == 1 && part.own_parts > 0;
      shared.merge.pending[num_pending + i] = {.unit = part.first_unit + i,
                                               .kv_head = part.kv_head,
                                               .num_blocks = num_blocks,
                                               .all_blocks = unit.num_blocks,
                                               .token = unit.token,
                                               .slot = part.own_slot,
                                               .num_parts = alone ? part.own_parts : 0};
    }
    num_pending += num_units;
  }

  // The warp reads the stage no more.
  __device__ void Release(int stage) {
    __syncwarp();
    if (lane == 0) Arrive(&shared.empty[stage]);
  }

  __device__ void Run() {
    StagePosition<S::kStages> at;
    Clear();
    while (true) {
      Wait(&shared.full[at.stage], at.phase);
      const Info& info = shared.info[at.stage];
      const int flags = info.flags;
      if (flags & kFirst) {
        scale = info.part.score_scale;
        LoadQueries(at.stage);
      }
      if (flags & kHasKeys) TakeIn(at.stage, info);
      if (flags & kLast) Finish(at.stage, info);
      Release(at.stage);
      at.Advance();
      if (flags & (kLast | kEnd)) {
        if (num_pending > (flags & kEnd ? 0 : shared.merge.kMaxPending - kStreamRows)) {
          CountUnits(p, plan, shared.merge, num_pending, threadIdx.x, kConsumers, Sync);
          num_pending = 0;
        }
        if (flags & kEnd) return;
        Clear();
      }
    }
  }
};

}  // namespace bough::cuda
