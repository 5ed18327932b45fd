// The prompt of a conversation, out of the pieces that chat_pieces.py found in the checkpoint's chat template.

#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const plan_chat *const chat = &dsv3c_plan.chat;

static dsv3c_string piece(const char *text) { return (dsv3c_string){text, strlen(text)}; }

static dsv3c_status check(dsv3c_string system, const dsv3c_string *turns, size_t count) {
  if (!chat->head) return dsv3c_fail(DSV3C_NO_CHAT_TEMPLATE, "%s", chat->lacks);
  if (system.text && !chat->system_head)
    return dsv3c_fail(DSV3C_NO_CHAT_TEMPLATE, "the chat template takes no text of the system as it is");
  if (system.text && system.size == 0)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "an empty text of the system needs to be left out");
  if (count > 1 && !chat->user_tail) return dsv3c_fail(DSV3C_NO_CHAT_TEMPLATE, "%s", chat->lacks);
  if (count % 2 == 0) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a conversation needs the user's text first and last");
  for (size_t i = 0; i < count; i++)
    if (turns[i].size && !turns[i].text) return dsv3c_fail(DSV3C_BAD_ARGUMENT, "a conversation needs its texts");
  return DSV3C_OK;
}

// The texts of the prompt in order, `parts` of them; NULL: only their number.
static size_t lay_out(dsv3c_string system, const dsv3c_string *turns, size_t count, dsv3c_string *parts) {
  dsv3c_string before[] = {piece(chat->system_head ? chat->system_head : ""), system,
                           piece(chat->system_tail ? chat->system_tail : "")};
  size_t first = system.text ? 3 : 1;
  if (!system.text) before[0] = piece(chat->head);
  for (size_t i = 0; parts && i < first; i++) *parts++ = before[i];
  for (size_t i = 0; parts && i < count; i++) {
    const char *behind = i + 1 == count ? chat->tail : i % 2 ? chat->assistant_tail : chat->user_tail;
    *parts++ = turns[i];
    *parts++ = piece(behind);
  }
  return first + 2 * count;
}

static dsv3c_status join(const dsv3c_string *parts, size_t count, char **text, size_t *size) {
  size_t total = 0;
  for (size_t i = 0; i < count; i++) total += parts[i].size;
  char *at = *text = malloc(total + 1);
  if (!at) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a conversation");
  for (size_t i = 0; i < count; at += parts[i++].size)
    if (parts[i].size) memcpy(at, parts[i].text, parts[i].size);
  *at = 0;
  *size = total;
  return DSV3C_OK;
}

dsv3c_status dsv3c_chat(const dsv3c_model *model, dsv3c_string system, const dsv3c_string *turns, size_t count,
                        char **text, size_t *size) {
  if (!model || !turns || !text || !size)
    return dsv3c_fail(DSV3C_BAD_ARGUMENT, "dsv3c_chat needs a model, texts and places for the prompt and its size");
  *text = 0;
  TRY(check(system, turns, count));
  size_t number = lay_out(system, turns, count, 0);
  dsv3c_string *parts = calloc(number, sizeof *parts);
  if (!parts) return dsv3c_fail(DSV3C_OUT_OF_MEMORY, "no memory for a conversation");
  lay_out(system, turns, count, parts);
  dsv3c_status status = join(parts, number, text, size);
  free(parts);
  return status;
}
