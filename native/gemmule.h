/* The C interface of gemmule's kernels: plain structs and pointers, no Python and no torch.
 *
 * All memory belongs to the caller except what a gm_context holds. The caller checks shapes, ranges
 * and pointers; the library does not check them again.
 *
 * docs/quantization.md describes the formats of matrices. A matrix has `rows` outputs and `columns`
 * inputs. A caller that mirrors these structs compares them with gm_abi before it uses them.
 */
#ifndef GEMMULE_H
#define GEMMULE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GM_INTERFACE 1 /* changes when a field changes its meaning but not its place */
#define GM_PAGE 32     /* positions in a page of the cache */

enum gm_format { GM_F32 = 0, GM_BF16 = 1, GM_INT4 = 4, GM_INT6 = 6, GM_INT8 = 8 };
enum gm_cache { GM_CACHE_F16 = 0, GM_CACHE_INT8 = 1, GM_CACHE_F32 = 2 };

typedef struct {
  const void *data;    /* F32, BF16: row-major; the others: tiles of 16 rows */
  const float *scales; /* INT8: one per row, padded to whole tiles */
  int32_t format, rows, columns, reserved;
} gm_matrix;

typedef struct {
  gm_matrix q, k, v, o, gate, up, down;
  const float *norms[4]; /* input, post attention, pre feed-forward, post feed-forward */
  int32_t window;        /* keys that a query sees, its own included; 0: all */
  int32_t slot;          /* index among the local or the global layers: its place in a page */
} gm_layer;

typedef struct {
  int32_t layers, hidden, ffn, heads, kv_heads, head_dim;
  int32_t vocab; /* tokens that can be predicted: a prefix of the embedding's rows */
  int32_t cache; /* gm_cache */
  float eps, attention_scale, attention_cap, final_cap, embed_scale; /* cap 0: none */
  int32_t reserved;
  gm_matrix embed;
  const float *norm;
  const float *inv_freq; /* head_dim / 2 */
  const gm_layer *layer;
} gm_model;

/* One span of consecutive tokens for each of several sequences, and the outputs to compute. */
typedef struct {
  int32_t tokens, spans, outputs, reserved;
  const int32_t *token;      /* [tokens] */
  const int32_t *span_first; /* [spans + 1]: index of each span's first token */
  const int32_t *span_start; /* [spans]: position of that token in its sequence */
  const int64_t *span_pages; /* [spans]: index of its first page in the two arrays */
  const int32_t *global_pages, *local_pages;
  uint8_t *pool;
  int64_t page_bytes;
  /* [outputs] each */
  const int32_t *output_token; /* index of the token after which to predict */
  const int32_t *output_top;   /* number of most likely tokens to return, 0 to top_stride */
  const int32_t *output_target; /* token whose logit to return, or -1 */
  const int32_t *output_z;      /* 1: return the logarithm of the sum of exp(logits) */
  const int32_t *output_row;    /* row of `logits` that receives all logits, or -1 */
  /* Bit i % 32 of word i / 32 says whether token i may be among the most likely ones. A pointer that
   * is NULL, or `output_mask` itself, allows all. The other results do not depend on it. */
  const uint32_t *const *output_mask;
  int32_t top_stride, reserved2;
  int32_t *top_ids;    /* [outputs, top_stride], most likely first; -1 where too few are allowed */
  float *top_logits;   /* [outputs, top_stride] */
  float *target_logit; /* [outputs] */
  float *log_z;        /* [outputs] */
  float *logits;       /* [rows, vocab] */
} gm_step;

typedef struct gm_context gm_context;

int32_t gm_interface(void);
/* The size of a struct ("gm_step"), the offset of a field ("gm_step.pool") or the value of a
 * constant ("GM_PAGE"), by name; -1 for an unknown name. */
int64_t gm_abi(const char *name);
/* The best instruction set of this processor among those built: "portable", "avx2", "avx_vnni",
 * "avx512vnni", "amx", and on ARM "dotprod", "i8mm". GEMMULE_ISA in the environment selects a lesser one. */
const char *gm_isa(void);
/* Selects an instruction set by name; 0, or -1 if it is not available. For tests. */
int32_t gm_set_isa(const char *name);
int64_t gm_page_bytes(const gm_model *model);
/* NULL if memory runs out or the threads cannot be started. One call at a time uses a context;
 * others wait. In a fork of the process the first call starts threads of its own. */
gm_context *gm_context_new(int32_t threads);
/* Does nothing in a fork of the process that made the context. */
void gm_context_free(gm_context *context);
/* One forward pass over all tokens of the step; 0, -1 if memory runs out, or -2 if the threads
 * cannot be started. */
int32_t gm_run(gm_context *context, const gm_model *model, const gm_step *step);
/* y[m, rows] = x[m, columns] times the transposed matrix; 0, -1 or -2 as for gm_run. */
int32_t gm_linear(gm_context *context, const gm_matrix *matrix, const float *x, int32_t m, float *y);
/* Dequantizes row `row` of a matrix. */
void gm_row(const gm_matrix *matrix, int32_t row, float *out);
/* The bytes per second at which the context's threads read `bytes` bytes, `rounds` times over;
 * -1 or -2 as for gm_run. */
double gm_read_speed(gm_context *context, const void *data, int64_t bytes, int32_t rounds);

#ifdef __cplusplus
}
#endif
#endif
