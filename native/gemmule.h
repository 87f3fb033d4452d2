/* The C interface of gemmule's kernels: plain structs and pointers, no Python and no torch.
 *
 * All memory belongs to the caller except what a gm_context holds. Nothing is checked here that the
 * Python side checks before it calls: shapes, ranges and pointers must be right.
 *
 * Formats of matrices are described in docs/quantization.md; a matrix has `rows` outputs and
 * `columns` inputs.
 */
#ifndef GEMMULE_H
#define GEMMULE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GM_INTERFACE 1 /* changes with every change of a struct below */
#define GM_PAGE 32     /* positions in a page of the cache */

enum gm_format { GM_F32 = 0, GM_BF16 = 1, GM_INT4 = 4, GM_INT6 = 6, GM_INT8 = 8 };
enum gm_cache { GM_CACHE_F16 = 0, GM_CACHE_INT8 = 1, GM_CACHE_F32 = 2 };

typedef struct {
  const void *data;    /* F32, BF16: row-major; the others: tiles of 16 rows */
  const float *scales; /* INT8: one a row, padded to whole tiles */
  int32_t format, rows, columns, reserved;
} gm_matrix;

typedef struct {
  gm_matrix q, k, v, o, gate, up, down;
  const float *norms[4]; /* input, post attention, pre feed-forward, post feed-forward */
  int32_t window;        /* keys a query sees, its own included; 0: all */
  int32_t slot;          /* which of the layers of its kind: its place in a page */
} gm_layer;

typedef struct {
  int32_t layers, hidden, ffn, heads, kv_heads, head_dim;
  int32_t vocab; /* words that can be predicted: a prefix of the embedding's rows */
  int32_t cache; /* gm_cache */
  float eps, attention_scale, attention_cap, final_cap, embed_scale; /* a cap of 0: none */
  int32_t reserved;
  gm_matrix embed;
  const float *norm;
  const float *inv_freq; /* head_dim / 2 */
  const gm_layer *layer;
} gm_model;

/* Successive tokens of some sequences, and what is wanted of them. */
typedef struct {
  int32_t tokens, spans, outputs, reserved;
  const int32_t *token;      /* [tokens] */
  const int32_t *span_first; /* [spans + 1]: where a span's tokens begin */
  const int32_t *span_start; /* [spans]: position of its first token */
  const int64_t *span_pages; /* [spans]: where its pages begin in the two arrays */
  const int32_t *global_pages, *local_pages;
  uint8_t *pool;
  int64_t page_bytes;
  /* [outputs] each */
  const int32_t *output_token; /* index of the token whose prediction is wanted */
  const int32_t *output_top;   /* how many of the likeliest words, 0 to top_stride */
  const int32_t *output_target; /* a word whose logit is wanted, or -1 */
  const int32_t *output_z;      /* 1: the logarithm of the sum of exp(logits) is wanted */
  const int32_t *output_row;    /* row of `logits` for all of them, or -1 */
  int32_t top_stride, reserved2;
  int32_t *top_ids;    /* [outputs, top_stride], likeliest first */
  float *top_logits;   /* [outputs, top_stride] */
  float *target_logit; /* [outputs] */
  float *log_z;        /* [outputs] */
  float *logits;       /* [rows, vocab] */
} gm_step;

typedef struct gm_context gm_context;

int32_t gm_interface(void);
/* The best instruction set of this processor among those built: "portable", "avx2", "avx512vnni",
 * "amx". GEMMULE_ISA in the environment may ask for a lesser one. */
const char *gm_isa(void);
/* Chooses by name; 0, or -1 where it cannot be had. For tests. */
int32_t gm_set_isa(const char *name);
int64_t gm_page_bytes(const gm_model *model);
/* NULL when memory or threads cannot be had. */
gm_context *gm_context_new(int32_t threads);
void gm_context_free(gm_context *context);
/* One forward pass over all tokens of the step; 0, or -1 when memory cannot be had. */
int32_t gm_run(gm_context *context, const gm_model *model, const gm_step *step);
/* y[m, rows] = x[m, columns] times the matrix; 0, or -1. */
int32_t gm_linear(gm_context *context, const gm_matrix *matrix, const float *x, int32_t m, float *y);
/* Row `row` of a matrix as floats. */
void gm_row(const gm_matrix *matrix, int32_t row, float *out);
/* Bytes a second that `threads` threads read from `bytes` bytes, `rounds` times over. */
double gm_read_speed(gm_context *context, const void *data, int64_t bytes, int32_t rounds);

#ifdef __cplusplus
}
#endif
#endif
