// UTF-8 as the Unicode standard has it: no surrogates, no overlong forms, nothing above U+10FFFF.

#include "tokenizer.h"

int utf8_length(const unsigned char *bytes, size_t count) {
  unsigned char lead = bytes[0], low = 0x80, high = 0xbf;  // of the second byte
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return -1;
  size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (lead == 0xe0) low = 0xa0;
  if (lead == 0xed) high = 0x9f;
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;
  for (size_t i = 1; i < length; i++, low = 0x80, high = 0xbf) {
    if (i >= count) return 0;
    if (bytes[i] < low || bytes[i] > high) return -1;
  }
  return (int)length;
}

bool utf8_valid(const unsigned char *text, size_t size) {
  for (size_t i = 0; i < size;) {
    int length = utf8_length(text + i, size - i);
    if (length <= 0) return false;
    i += (size_t)length;
  }
  return true;
}

// The text of `count` held bytes that have become a character, or never will. Returns its bytes.
static size_t settle(dsv3c_text *text, bool valid, char *out) {
  static const char replacement[] = "\xef\xbf\xbd";
  size_t size = valid ? text->count : 3;
  for (size_t i = 0; i < size; i++) out[i] = valid ? (char)text->held[i] : replacement[i];
  text->count = 0;
  return size;
}

static size_t push_byte(dsv3c_text *text, unsigned char byte, char *out) {
  size_t size = 0;
  text->held[text->count++] = byte;
  int length = utf8_length(text->held, text->count);
  if (length < 0 && text->count > 1) {  // what was held is no character, the byte may begin one
    size = settle(text, false, out);
    text->held[text->count++] = byte;
    length = utf8_length(text->held, 1);
  }
  return length == 0 ? size : size + settle(text, length > 0, out + size);
}

dsv3c_status dsv3c_text_push(const dsv3c_model *model, dsv3c_text *text, int32_t token, char *out, size_t capacity,
                             size_t *size) {
  if (!model || !text || !out || !size)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_text_push needs a model, a stream and places for the text");
  if (text->count >= sizeof text->held) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a stream of text needs to begin zeroed");
  const tokenizer *t = model->tokenizer;
  if (!t) return dsv3c_fail(DSV3C_NO_TOKENIZER, "this model was compiled without a tokenizer");
  *size = 0;
  if (token < 0 || (uint32_t)token >= t->tokens) return DSV3C_OK;  // an id that no text has
  const unsigned char *at = t->bytes + t->starts[token], *end = t->bytes + t->starts[token + 1];
  if (capacity < 3 * ((size_t)(end - at) + text->count))
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "%zu bytes are too few for the text of a token", capacity);
  for (; at < end; at++) *size += push_byte(text, *at, out + *size);
  return DSV3C_OK;
}

size_t dsv3c_text_bytes(const dsv3c_model *model) {
  return model && model->tokenizer ? 3 * ((size_t)model->tokenizer->longest + 3) : 0;
}

size_t dsv3c_text_flush(dsv3c_text *text, char out[3]) {
  return text && out && text->count && text->count < sizeof text->held ? settle(text, false, out) : 0;
}
