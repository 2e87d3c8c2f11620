#include "json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void append(struct json *out, const char *bytes, size_t length)
{
    if (out->length + length > out->room) {
        size_t room = (out->length + length) * 2;
        char *grown = realloc(out->text, room);
        if (grown == NULL) {
            perror("observer: out of memory");
            _exit(125);
        }
        out->text = grown;
        out->room = room;
    }
    memcpy(out->text + out->length, bytes, length);
    out->length += length;
}

static void append_escaped(struct json *out, unsigned char byte)
{
    char escaped[8];
    int length;

    if (byte == '"' || byte == '\\') {
        length = snprintf(escaped, sizeof escaped, "\\%c", byte);
    } else if (byte < 0x20 || byte >= 0x7f) {
        length = snprintf(escaped, sizeof escaped, "\\u%04x", byte);
    } else {
        length = snprintf(escaped, sizeof escaped, "%c", byte);
    }
    append(out, escaped, (size_t)length);
}

static void quoted(struct json *out, const char *bytes, size_t length)
{
    append(out, "\"", 1);
    for (size_t i = 0; i < length; i++) {
        append_escaped(out, (unsigned char)bytes[i]);
    }
    append(out, "\"", 1);
}

/* The comma is owed unless the value is the first one of its container. */
static void begin_value(struct json *out, const char *key)
{
    if (out->length > 0 && strchr("{[", out->text[out->length - 1]) == NULL) {
        append(out, ",", 1);
    }
    if (key != NULL) {
        quoted(out, key, strlen(key));
        append(out, ":", 1);
    }
}

void json_open(struct json *out, const char *key, char bracket)
{
    begin_value(out, key);
    append(out, &bracket, 1);
}

void json_close(struct json *out, char bracket)
{
    append(out, &bracket, 1);
}

void json_bytes(struct json *out, const char *key, const char *bytes, size_t length)
{
    begin_value(out, key);
    quoted(out, bytes, length);
}

void json_string(struct json *out, const char *key, const char *text)
{
    json_bytes(out, key, text, strlen(text));
}

void json_number(struct json *out, const char *key, long long value)
{
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%lld", value);

    begin_value(out, key);
    append(out, digits, (size_t)length);
}

void json_hex(struct json *out, const char *key, unsigned long long value)
{
    char digits[24];

    snprintf(digits, sizeof digits, "%llx", value);
    json_string(out, key, digits);
}

void json_octal(struct json *out, const char *key, unsigned int value)
{
    char digits[16];

    snprintf(digits, sizeof digits, "%o", value);
    json_string(out, key, digits);
}

void json_null(struct json *out, const char *key)
{
    begin_value(out, key);
    append(out, "null", 4);
}

int json_flush(const struct json *out, int fd)
{
    size_t done = 0;

    while (done < out->length) {
        ssize_t written = write(fd, out->text + done, out->length - done);
        if (written < 0 && errno != EINTR) {
            return -1;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    return 0;
}
