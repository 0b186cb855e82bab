// All layers of a decoder in one call: RMS norm, attention, RMS norm and a gated MLP, each pair with a residual.
//
// Nothing is computed here: a layer is the sequence of kernels that Python would call, so it gives the same bits. What
// is saved is the time between them, 0.1 ms a layer.
#include "kernels.h"

static char* at(int kind, void* x, long numbers) { return (char*)x + numbers * (kind == BFLOAT16 ? 2 : 4); }

void multiply(int kind, const DecoderWeight& w, const void* x, long m, long n, long k, const void* residual, void* y) {
  long first = 0;
  auto of = [&](const void* numbers) { return numbers ? at(kind, (void*)numbers, first) : nullptr; };
  for (const DecoderWeight* p = &w; p; first += p->n, p = p->next) {
    const LinearArguments linear{x, p->numbers, of(w.bias), of(residual), of(y), m, p->n, k, k, n, n};
    const QuantizedArguments quantized{linear, p->scales, p->zeros, p->shares, p->minima, p->table,
                                       p->bits, p->group, p->span, p->share_kind};
    if (p->scales) tgi_quantized_linear(kind, &quantized);
    else tgi_linear(kind, &linear);
  }
}

static void multiply(int kind, const DecoderStep& s, const DecoderWeight& w, const void* x, long n, long k, const void* residual, void* y) {
  multiply(kind, w, x, s.tokens, n, k, residual, y);
  const LoraArguments lora{x, y, w.adapters, s.loras, k, k, n};
  if (s.loras && w.adapters) tgi_lora(kind, &lora);
}

static void attend(int kind, const DecoderLayer& l, const DecoderStep& s) {
  const DecoderPlaces& places = s.places[l.group];
  const long size = l.size, stride = (l.heads + 2 * l.kv_heads) * size;
  void *query = s.qkv, *key = at(kind, query, l.heads * size), *value = at(kind, key, l.kv_heads * size);
  if (l.query_norm) {
    tgi_head_norm(kind, query, l.query_norm, l.epsilon, s.tokens, l.heads, size, stride);
    tgi_head_norm(kind, key, l.key_norm, l.epsilon, s.tokens, l.kv_heads, size, stride);
  }
  if (l.rotation >= 0) {
    const DecoderRotation& r = s.rotations[l.rotation];
    tgi_rotary(kind, query, s.tokens, l.heads + l.kv_heads, size, stride, r.cos, r.sin, r.rotated);
  }
  tgi_store_kv(kind, key, value, s.tokens, l.kv_heads, size, stride, stride, places.slots, l.keys, l.values);
  const AttentionArguments attention{query, l.keys, l.values, s.attended, places.tables, s.offsets, s.lengths, s.starts,
                                     places.bases, l.slopes, s.rows, places.width, l.heads, l.kv_heads, size, stride,
                                     l.window, l.scale, l.softcap, l.sinks};
  tgi_attention(kind, &attention);
}

extern "C" void tgi_decode(int kind, const DecoderLayer* layers, long count, const DecoderStep* step) {
  const DecoderStep& s = *step;
  for (long i = 0; i < count; i++) {
    const DecoderLayer& l = layers[i];
    const long hidden = s.hidden, heads = l.heads * l.size, qkv = heads + 2 * l.kv_heads * l.size;
    tgi_rms_norm(kind, s.x, l.attention_norm, l.epsilon, s.tokens, hidden, hidden, s.normal);
    multiply(kind, s, l.qkv, s.normal, qkv, hidden, nullptr, s.qkv);
    attend(kind, l, s);
    multiply(kind, s, l.out, s.attended, hidden, heads, s.x, s.x);
    tgi_rms_norm(kind, s.x, l.mlp_norm, l.epsilon, s.tokens, hidden, hidden, s.normal);
    multiply(kind, s, l.up, s.normal, 2 * l.inner, hidden, nullptr, s.gate_up);
    tgi_gate(kind, SILU, s.gate_up, s.tokens, l.inner, s.gated);
    multiply(kind, s, l.down, s.gated, hidden, l.inner, s.x, s.x);
  }
}
