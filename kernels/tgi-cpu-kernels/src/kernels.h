// The C interface of the library, called from Python through ctypes. Strides and sizes are counted in numbers,
// not bytes. `kind` is the type of all numbers: FLOAT32 or BFLOAT16; sums are float32 always.
#pragma once
#include <cstdint>

enum { FLOAT32 = 0, BFLOAT16 = 1 };
enum { SILU = 0, SWIGLU = 1 };  // gates of an MLP; the second is gpt-oss'
enum { INTEGERS = 0, FLOATS = 1, POWERS = 2 };  // kinds of shares in 8 bits; e4m3 that is not negative, and e8m0

struct LinearArguments {
  const void *x, *w;  // [m, k]; packed by tgi_pack
  const void *bias, *residual;  // [n], [m, n], or null
  void* y;  // [m, n]
  long m, n, k, x_stride, residual_stride, y_stride;
};

struct QuantizedArguments {
  LinearArguments linear;  // w: packed by tgi_pack_ints
  const float* scales;  // [units][groups / span, rounded up][32]: factor of each column's weights in `span` groups
  const uint8_t* zeros;  // [units][groups][32]: the stored number that means 0; null: half of the range
  const int8_t* shares;  // [units][groups][32]: what the factor of a group is multiplied by; null: 1
  const float* minima;  // [units][groups / span][32]; if not null, this times `zeros` is subtracted from every weight
  const int8_t* table;  // [16]: what weights of 4 bits stand for, without zeros and minima; null: themselves
  long bits, group, span, share_kind;  // 4 or 8; input features of a group, a multiple of 8; a power of 2
};

struct LoraPiece {  // a part of the outputs of a linear layer that an adapter changes
  const void* up;  // [n, rank], packed by tgi_pack
  long rank, column, first, n;  // its first column between the matrices; its first output, and how many
};

struct LoraAdapter {  // the matrices of one slot for one linear layer
  const void* down;  // [columns, k], packed by tgi_pack: those of all pieces
  const LoraPiece* pieces;
  long columns, count;  // of pieces; 0: it leaves the layer as it is
};

struct LoraSegment {  // tokens that have the same adapter
  long slot, begin, count;
};

struct LoraRows {
  const int32_t* tokens;  // indices of tokens, those of one segment after those of another
  const LoraSegment* segments;
  long count;  // of segments
};

struct LoraArguments {
  const void* x;  // [tokens, k]: the input of the layer
  void* y;  // its output, to which is added
  const LoraAdapter* adapters;  // by slot
  const LoraRows* rows;
  long k, x_stride, y_stride;
};

struct AttentionArguments {
  const void* query;  // [tokens, heads, size]
  const void *keys, *values;  // the cache of one layer, see attention.cpp
  void* out;  // [tokens, heads, size]
  const int32_t* tables;  // [rows, width]: block ids
  const int32_t *offsets, *lengths, *starts;  // [rows]: index of the first query token; how many; its position
  const int32_t* bases;  // [rows]: position of the first token of the table, or null for 0
  const float* slopes;  // [heads]: ALiBi, or null
  long rows, width, heads, kv_heads, size, query_stride, window;  // 0: all tokens before; -n: those of the same n
  float scale, softcap;  // softcap 0: none
  const float* sinks;  // [heads]: score of a key whose value is 0, or null
};

struct DecoderWeight {  // of a linear layer
  const void *numbers, *bias;  // bias: null for none
  const float* scales;  // null: dense, packed by tgi_pack; else as in QuantizedArguments
  const uint8_t* zeros;
  const int8_t* shares;
  const float* minima;
  const int8_t* table;
  long bits, group, span, share_kind, n;  // n: its outputs
  const DecoderWeight* next;  // the weight of the outputs after these, or null; without bias and adapters
  const LoraAdapter* adapters;  // by slot, or null
};

struct ExpertsArguments {
  const void* x;  // [tokens, hidden]
  const void* weights;  // [tokens, top]
  const int64_t* chosen;  // [tokens, top]: numbers of experts; those below `first` or from first + count on are left out
  const DecoderWeight *up, *down;  // [count]: gates, then what they multiply; what comes after them
  void* y;  // [tokens, hidden]
  long tokens, hidden, inner, top, first, count, x_stride, gate;
};

struct DecoderLayer {
  const void *attention_norm, *mlp_norm;  // [hidden]
  const void *query_norm, *key_norm;  // [size]: norms of each head before it is rotated, or null
  DecoderWeight qkv, out, up, down;  // up: gates, then what they multiply
  void *keys, *values;
  const float *slopes, *sinks;
  long heads, kv_heads, size, inner, window, group, rotation;  // indices of its places and rotation; -1: no rotation
  float epsilon, scale, softcap;
};

struct DecoderPlaces {  // the rows in the cache of a group of layers, as in AttentionArguments
  const int32_t *slots, *tables, *bases;
  long width;
};

struct DecoderRotation {
  const float *cos, *sin;  // [tokens, rotated / 2]
  long rotated;
};

struct DecoderStep {
  void* x;  // [tokens, hidden]: input of the first layer, becomes the output of the last one
  void *normal, *qkv, *attended, *gate_up, *gated;  // scratch, for `tokens` rows each
  const DecoderPlaces* places;
  const DecoderRotation* rotations;
  const int32_t *offsets, *lengths, *starts;
  const LoraRows* loras;  // null: no token has an adapter
  long tokens, rows, hidden;
};

void multiply(int kind, const DecoderWeight&, const void* x, long m, long n, long k, const void* residual, void* y);

extern "C" {
extern const char tgi_sources[];  // tells the sources that a library was built from, see build.py
const char* tgi_check();  // null, or why the library cannot be used here
void tgi_use_threads(long threads);  // the caller is one of them
long tgi_packed_size(int kind, long n, long k);
void tgi_pack(int kind, const void* w, long n, long k, long stride, void* out);
void tgi_packed_rows(int kind, const void* w, long n, long k, const int64_t* indices, long count, void* out);
void tgi_linear(int kind, const LinearArguments*);
void tgi_lora(int kind, const LoraArguments*);
long tgi_packed_ints_size(long n, long k, long bits, long group);
void tgi_pack_ints(const uint8_t* w, long n, long k, long bits, long group, uint8_t* out);
void tgi_round_and_pack(int kind, const void* w, long n, long k, long stride, long bits, long group, uint8_t* out,
                        float* scales, uint8_t* zeros);
void tgi_quantized_linear(int kind, const QuantizedArguments*);
void tgi_store_kv(int kind, const void* key, const void* value, long tokens, long kv_heads, long size, long key_stride,
                  long value_stride, const int32_t* slots, void* keys, void* values);
void tgi_attention(int kind, const AttentionArguments*);
void tgi_rms_norm(int kind, const void* x, const void* weight, float epsilon, long rows, long size, long stride, void* out);
void tgi_head_norm(int kind, void* x, const void* weight, float epsilon, long tokens, long heads, long size, long stride);
void tgi_gate(int kind, long gate, const void* x, long rows, long size, void* out);
void tgi_rotary(int kind, void* x, long tokens, long heads, long size, long stride, const float* cos, const float* sin,
                long rotated);
void tgi_greedy(int kind, const void* x, long rows, long size, long stride, int64_t* best, float* logprobs);
void tgi_log_softmax(const float* x, long rows, long size, long stride, float* out);
void tgi_draw(const float* logprobs, long rows, long size, long stride, const int32_t* keys, int64_t* out);
void tgi_top_cut(const float* x, long rows, long size, long stride, const int32_t* top_k, const float* top_p, float* cut);
void tgi_experts(int kind, const ExpertsArguments*);
void tgi_decode(int kind, const DecoderLayer*, long count, const DecoderStep*);
}
