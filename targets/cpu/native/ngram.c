// Drafts out of the text itself: prompt lookup decoding (Saxena 2023).

#include "generate.h"

// How many tokens, up to LONGEST_MATCH, before `at` are those at the end of the text.
static int32_t matching(const int32_t *tokens, size_t count, size_t at) {
  int32_t length = 0;
  while (length < LONGEST_MATCH && (size_t)length < at && tokens[at - 1 - length] == tokens[count - 1 - length]) length++;
  return length;
}

int32_t ngram_propose(const int32_t *tokens, size_t count, int32_t most, int32_t *drafts) {
  int32_t longest = 0;
  size_t behind = 0;
  for (size_t at = count ? count - 1 : 0; at > 0 && longest < LONGEST_MATCH; at--) {
    int32_t length = matching(tokens, count, at);
    if (length > longest) longest = length, behind = at;
  }
  // What reaches the end of the text goes on with itself: it repeats.
  for (int32_t i = 0; longest && i < most; i++) {
    size_t from = behind + (size_t)i;
    drafts[i] = from < count ? tokens[from] : drafts[from - count];
  }
  return longest;
}
