// What a control group leaves of the machine's CPUs, in version 1 and 2, as runtime/devices/cpu/cgroup.py reads it.
// Linux alone has them. For one file of a library.
#ifndef DSV3C_QUOTA_H
#define DSV3C_QUOTA_H

#ifdef __linux__
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUOTA_LINE = 4096 };

static FILE *quota_open_at(const char *root, const char *path) {
  char full[2 * QUOTA_LINE];
  if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full) return 0;
  return fopen(full, "re");
}

// The first line of a file below `root`; false where there is none.
static int quota_first_line(const char *root, const char *folder, const char *name, char *line, int size) {
  char path[QUOTA_LINE];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return 0;
  FILE *file = quota_open_at(root, path);
  if (!file) return 0;
  char *found = fgets(line, size, file);
  fclose(file);
  return found != 0;
}

static int quota_is_listed(const char *list, const char *word) {
  size_t length = strlen(word);
  for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : 0)
    if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == 0)) return 1;
  return 0;
}

// Path of this process's group: of the hierarchy with the controller "cpu", or of version 2 where `version` is 2.
static int quota_group_path(const char *root, int version, char *path) {
  char line[QUOTA_LINE];
  int found = 0;
  FILE *file = quota_open_at(root, "/proc/self/cgroup");
  while (file && !found && fgets(line, sizeof line, file)) {
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : 0;
    if (!group) continue;
    *group++ = 0;
    group[strcspn(group, "\n")] = 0;
    found = version == 2 ? controllers[1] == 0 : quota_is_listed(controllers + 1, "cpu");
    if (found) memcpy(path, group, strlen(group) + 1);
  }
  if (file) fclose(file);
  return found;
}

// Where that hierarchy is mounted, and the group that stands there.
static int quota_mount_point(const char *root, int version, char *point, char *top) {
  char line[QUOTA_LINE];
  int found = 0;
  FILE *file = quota_open_at(root, "/proc/self/mountinfo");
  while (file && !found && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    char *kind = strstr(line, " - "), *field[5] = {0}, *rest = 0;
    if (!kind) continue;
    *kind = 0;
    kind += 3;
    char *options = strrchr(kind, ' ');
    found = version == 2 ? strncmp(kind, "cgroup2 ", 8) == 0
                         : strncmp(kind, "cgroup ", 7) == 0 && options && quota_is_listed(options + 1, "cpu");
    field[0] = strtok_r(line, " ", &rest);
    for (int i = 1; i < 5 && field[i - 1]; i++) field[i] = strtok_r(0, " ", &rest);
    found = found && field[4];
    if (!found) continue;
    memcpy(top, field[3], strlen(field[3]) + 1);
    memcpy(point, field[4], strlen(field[4]) + 1);
  }
  if (file) fclose(file);
  return found;
}

// Whole CPUs of one group, at least 1; 0 without a quota.
static int quota_of(const char *root, int version, const char *folder) {
  char line[QUOTA_LINE], *end;
  long long quota, period;
  if (!quota_first_line(root, folder, version == 2 ? "cpu.max" : "cpu.cfs_quota_us", line, sizeof line)) return 0;
  quota = strtoll(line, &end, 10);
  if (end == line || quota <= 0) return 0;  // "max", or -1
  if (version == 1 && !quota_first_line(root, folder, "cpu.cfs_period_us", end = line, sizeof line)) return 0;
  period = strtoll(end, 0, 10);
  if (period <= 0) return 0;
  long long whole = quota / period;
  return whole < 1 ? 1 : whole > 1 << 20 ? 0 : (int)whole;
}

static int quota_smallest_of(const char *root, int version) {
  char group[QUOTA_LINE], point[QUOTA_LINE], top[QUOTA_LINE], folder[2 * QUOTA_LINE];
  if (!quota_group_path(root, version, group) || !quota_mount_point(root, version, point, top)) return 0;
  size_t prefix = strcmp(top, "/") == 0 ? 0 : strlen(top);
  const char *below = strncmp(group, top, prefix) == 0 ? group + prefix : "";
  if (strstr(below, "..")) below = "";  // a group outside of what is mounted here
  snprintf(folder, sizeof folder, "%s%s", point, strcmp(below, "/") == 0 ? "" : below);
  int smallest = 0;
  for (size_t least = strlen(point); strlen(folder) >= least;) {
    int found = quota_of(root, version, folder);
    if (found && (!smallest || found < smallest)) smallest = found;
    char *slash = strrchr(folder, '/');
    if (!slash) break;
    *slash = 0;
  }
  return smallest;
}

// Whole CPUs of the smallest quota of this process's control group and those around it, at least 1; 0 where there is
// none. root: the folder that holds proc and sys, "" for the machine's own.
static int quota_cpus(const char *root) {
  int first = quota_smallest_of(root, 1), second = quota_smallest_of(root, 2);
  return !first || (second && second < first) ? second : first;
}
#else
static int quota_cpus(const char *root) {
  (void)root;
  return 0;
}
#endif

#endif
